"""The pictures of a report. Colours are Okabe and Ito's, which colour-blind people can tell apart;
an agent has the same one everywhere, and of several that share it the first.
"""

# matplotlib leaves many types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from itertools import cycle
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ml_trainer_env.evals import files
from ml_trainer_env.evals.results import OPERATORS_MEASURES, Row, groups, rank
from ml_trainer_env.task_ids import CLUSTER

TITLES: dict[str, str] = {
    "easy_mnist": "easy: MNIST",
    "medium_fashion": "medium: FashionMNIST",
    "hard_cifar": "hard: CIFAR-10",
}
COLOURS = {
    "nothing": "#9a9a9a",
    "random": "#56b4e9",
    "naive": "#e69f00",
    "constant": "#6b4c9a",
    "expert": "#d55e00",
    "reference": "#000000",
    "oracle": "#2b2b2b",
    "optuna": "#0072b2",
    "halving": "#009e73",
    "pbt": "#cc79a7",
    "llm": "#b8a900",
}
OTHERS = ("#8c2d04", "#1b7837", "#c51b7d", "#2166ac", "#7f7f00")  # who has none of them
INK, FAINT = "#222222", "#dddddd"
DPI = 120
PALETTE = 96  # colours of a picture file

BAND = (0.25, 0.75)  # quantiles over the seeds
PROFILE_STEPS = 201


def draw(rows: Sequence[Row], folder: Path) -> list[tuple[str, str]]:
    """Write the pictures; gives their names and what they show."""
    pictures = {
        "scores.png": (_scores, "Final scores: every seed, the mean and its 95% interval"),
        "curves.png": (_curves, "Best validation accuracy against epochs spent: median, quartiles"),
        "profile.png": (_profile, "Performance profile: the share of attempts above a score"),
    }
    if all(row.group.startswith(CLUSTER) for row in rows):
        del pictures["curves.png"]  # they have no accuracies
    with warnings.catch_warnings():
        # The font has no signs for all scripts that the name of a model may be written in.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        for name, (plot, _) in pictures.items():
            save(plot(rows), folder / name)
    return [(name, shown) for name, (_, shown) in pictures.items()]


def _scores(rows: Sequence[Row]) -> Figure:
    """A panel a task, of clusters one each for what their scores are of; a line an agent: all seeds
    as dots, the mean with its interval above them.
    """
    colours = _colours(rows)
    labels = list(colours)
    of_panels = panels(rows)
    figure, axes = _panels(len(of_panels), height=1.1 + 0.34 * len(labels))
    for axis, (title, shown) in zip(axes, of_panels.items(), strict=True):
        for row in shown:
            y, colour = labels.index(row.label), colours[row.label]
            jitter = np.linspace(-0.16, 0.16, len(row.scores)) if len(row.scores) > 1 else [0.0]
            axis.scatter(
                row.scores, y + np.asarray(jitter), s=14, color=colour, alpha=0.45, linewidths=0
            )
            axis.hlines(y, *row.interval, color=colour, linewidth=2.4)
            axis.scatter(
                fmean(row.scores), y, s=44, color=colour, edgecolors="white", linewidths=1, zorder=3
            )
        axis.set_title(title)
        axis.set_xlim(-0.03, 1.03)
        axis.set_xlabel("final score")
        axis.set_yticks(range(len(labels)), list(map(_literal, labels)))
        axis.set_ylim(len(labels) - 0.5, -0.5)
        axis.grid(axis="x", color=FAINT)
        axis.tick_params(axis="y", length=0)
    for axis in axes[1:]:
        axis.set_yticklabels([])
    return figure


def panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """By title. Recovery and restraint are never averaged: who does nothing has all of one."""
    found: dict[str, list[Row]] = {}
    for group in groups(rows):
        of_group = [row for row in rows if row.group == group]
        if not group.startswith(CLUSTER):
            found[TITLES.get(group, group)] = of_group
            continue
        for measure in OPERATORS_MEASURES:
            parts = [(row, [r for r in row.results if r.measure == measure]) for row in of_group]
            if any(part for _, part in parts):
                found[f"{group}: {measure}"] = [
                    replace(row, results=tuple(part)) for row, part in parts if part
                ]
    return found


def _curves(rows: Sequence[Row]) -> Figure:
    """What the epochs bring, whichever session they were spent in; clusters have no accuracies."""
    colours = _colours(rows)
    shown = [group for group in groups(rows) if not group.startswith(CLUSTER)]
    figure, axes = _panels(len(shown), height=3.5)
    for axis, group in zip(axes, shown, strict=True):
        finals: list[float] = []
        for row in (row for row in rows if row.group == group):
            budget = max(result.max_epochs for result in row.results)
            grid = np.arange(budget + 1)
            lines = np.array([_steps(result.curve, budget) for result in row.results])
            if not lines.any():
                continue
            middle = np.median(lines, axis=0)
            low, high = np.quantile(lines, BAND, axis=0)
            colour, label = colours[row.label], _literal(row.label)
            axis.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0, step="post")
            axis.step(grid, middle, where="post", color=colour, linewidth=1.6, label=label)
            finals.append(float(middle[-1]))
        axis.set_title(TITLES.get(group, group))
        axis.set_xlabel("epochs spent, all sessions")
        axis.margins(x=0)
        if finals:
            top = max(finals)
            axis.set_ylim(top - 0.3, top + 0.015)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.grid(color=FAINT)
    axes[0].set_ylabel("best validation accuracy")
    _legend(figure, axes)
    return figure


def _profile(rows: Sequence[Row]) -> Figure:
    """The share of all attempts, every task counting the same, with at least a score."""
    figure, [axis] = _panels(1, height=3.6, width=6.4)
    thresholds = np.linspace(0, 1, PROFILE_STEPS)
    for label, colour in _colours(rows).items():
        own = [np.asarray(row.scores) for row in rows if row.label == label]
        shares = np.mean([(s[:, None] >= thresholds[1:]).mean(axis=0) for s in own], axis=0)
        axis.step(thresholds[1:], shares, color=colour, linewidth=1.8, label=_literal(label))
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.03)
    axis.set_xlabel("score")
    axis.set_ylabel("share of attempts that reach it")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.grid(color=FAINT)
    _legend(figure, [axis])
    return figure


def save(figure: Figure, path: Path) -> None:
    """As a palette PNG: flat colours need no more, and it is a third of the size."""
    drawn, reduced = BytesIO(), BytesIO()
    figure.savefig(drawn, dpi=DPI)
    with Image.open(drawn) as picture:
        palette = picture.convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE)
        palette.save(reduced, "PNG", optimize=True)
    files.write(path, reduced.getvalue())


# Inside -------------------------------------------------------------------------------------------


def _steps(curve: Sequence[tuple[int, float]], budget: int) -> np.ndarray:
    """(budget + 1,) the curve as a function of the epochs spent; it keeps its last value."""
    values = np.zeros(budget + 1)
    for epochs, accuracy in curve:
        values[epochs:] = accuracy
    return values


def _panels(count: int, *, height: float, width: float = 10.5) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.tick_params(colors=INK, labelsize=9)
        axis.set_axisbelow(True)
        axis.xaxis.label.set_color(INK)
        axis.yaxis.label.set_color(INK)
    return figure, axes


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One for all panels."""
    entries = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        entries.values(), entries.keys(), loc="outside right upper", frameon=False, fontsize=9
    )


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """Of each label, in the order of the agents."""
    others = cycle(OTHERS)
    free = dict(COLOURS)
    labels = {row.label: row.agent for row in sorted(rows, key=rank)}
    return {label: free.pop(agent, None) or next(others) for label, agent in labels.items()}


def _literal(label: str) -> str:
    """As it is, for matplotlib: between dollar signs it would read a formula."""
    return label.replace("$", r"\$")
