"""The rollouts of `learn_words.py`: how they are noted, what they did, and their curve."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import log10
from pathlib import Path
from statistics import fmean, quantiles, stdev
from typing import Any

from matplotlib.figure import Figure
from transformers import TrainerState

from ml_trainer_env.adapters import text
from ml_trainer_env.adapters.steps import GUESSING
from ml_trainer_env.adapters.trl import TrainingRun
from ml_trainer_env.evals import plots
from ml_trainer_env.evals.results import bootstrap
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.task_ids import TaskId

FEWEST = 4  # values, to speak of their spread
_TRAINED = re.compile(r"^trained (\d+) epoch")
_LOSS = re.compile(r", val loss ([\d.]+)")


@dataclass(frozen=True)
class Call:
    """A call, and what came of it."""

    tool: str
    value: float | None  # the rate that was configured, or the epochs that were asked for
    epochs: int  # trained
    val_loss: float | None  # as the answer told it; a divergence has none


@dataclass(frozen=True)
class Rollout:
    """An episode of the model."""

    step: int
    task_id: TaskId
    episode_return: float
    calls: tuple[Call, ...]  # up to the end of the episode


class Noting:
    """In the place of a reward, for TRL: a line of `path` for each rollout."""

    __name__ = "noting"

    def __init__(self, path: Path, updates: int) -> None:
        self.path = path
        self._updates = updates  # of the model, in a step

    def __call__(
        self,
        completions: Sequence[Sequence[dict[str, Any]]],
        environments: Sequence[TrainingRun],
        task_id: Sequence[TaskId],
        trainer_state: TrainerState,
        **_: Any,
    ) -> list[float | None]:
        step = trainer_state.global_step // self._updates
        played = zip(completions, environments, task_id, strict=True)
        with self.path.open("a", encoding="utf-8") as out:
            for messages, environment, task in played:
                rollout = Rollout(step, task, environment.get_reward(), tuple(_calls(messages)))
                out.write(json.dumps(asdict(rollout)) + "\n")
        return [None for _ in completions]


def _calls(messages: Sequence[dict[str, Any]]) -> Iterator[Call]:
    """Those of a conversation that were answered before the end."""
    for said, answered in pairwise(messages):
        if answered["role"] == "tool" and answered["content"] != text.OVER:
            call, answer = said["tool_calls"][0]["function"], str(answered["content"])
            arguments = call["arguments"]
            trained, loss = _TRAINED.search(answer), _LOSS.search(answer)
            yield Call(
                call["name"],
                arguments.get("learning_rate", arguments.get("num_epochs")),
                int(trained[1]) if trained else 0,
                float(loss[1]) if loss else None,
            )


def read(path: Path) -> list[Rollout]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [
        Rollout(**{**each, "calls": tuple(Call(**call) for call in each["calls"])})
        for each in found
    ]


def keep(path: Path, steps: int) -> None:
    """Of the lines only those of the first so many steps: the others will be played again."""
    kept = [json.dumps(asdict(each)) + "\n" for each in read(path) if each.step < steps]
    path.write_text("".join(kept), encoding="utf-8")


def by_start(rollouts: Sequence[Rollout]) -> dict[tuple[int, TaskId], float]:
    """The mean return of each start of each step, whose rollouts are of one group."""
    groups: dict[tuple[int, TaskId], list[float]] = {}
    for each in rollouts:
        groups.setdefault((each.step, each.task_id), []).append(each.episode_return)
    return {start: fmean(group) for start, group in groups.items()}


def told(values: Iterable[float]) -> list[float]:
    """The mean and its 95% interval."""
    known = list(values)
    return [round(value, 4) for value in (fmean(known), *bootstrap(known))]


def parts(rollouts: Sequence[Rollout], count: int) -> list[list[Rollout]]:
    """As many parts of the run, of as many steps each as can be."""
    steps = 1 + max(each.step for each in rollouts)
    return [
        [each for each in rollouts if each.step * count // steps == part] for part in range(count)
    ]


def habits(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """What the model does, in numbers."""
    fresh = [each for each in rollouts if task_of(each.task_id).inherited is None]
    rates = [
        (rate, rate * float(task_of(each.task_id).hidden["multiplier"]))
        for each in rollouts
        if (rate := _most_trained(each)) is not None
    ]
    return {
        "configured first, of fresh networks": fmean(
            bool(each.calls) and each.calls[0].tool == "configure_training" for each in fresh
        ),
        "first rates": dict(
            sorted(Counter(rate for each in rollouts for rate in _configured(each)[:1]).items())
        ),
        "calls": fmean(len(each.calls) for each in rollouts),
        "rates configured": fmean(len(_configured(each)) for each in rollouts),
        "share of the budget trained": fmean(
            sum(call.epochs for call in each.calls) / task_of(each.task_id).budget
            for each in rollouts
        ),
        "never trained": fmean(not any(call.epochs for call in each.calls) for each in rollouts),
        "trained one epoch first": fmean(
            next((call.epochs for call in each.calls if call.epochs), 0) == 1 for each in rollouts
        ),
        "submitted": fmean(_submitted(each) for each in rollouts),
        "most frequent calls after": _reactions(rollouts),
        "rate most trained with": _spread([rate for rate, _ in rates]),
        "the same, times the hidden multiplier": _spread([scaled for _, scaled in rates]),
    }


def _configured(rollout: Rollout) -> list[float]:
    return [
        call.value for call in rollout.calls if call.tool == "configure_training" and call.value
    ]


def _submitted(rollout: Rollout) -> bool:
    return any(call.tool == "submit_model" for call in rollout.calls)


def _most_trained(rollout: Rollout) -> float | None:
    """The rate that the most epochs were begun with."""
    rate, epochs = None, Counter[float]()
    for call in rollout.calls:
        if call.tool == "configure_training":
            rate = call.value
        elif rate is not None and call.epochs:
            epochs[rate] += call.epochs
    return epochs.most_common(1)[0][0] if epochs else None


def _reactions(rollouts: Sequence[Rollout]) -> dict[str, dict[str, Any]]:
    """What comes after training: how often which call, by the loss that was told."""
    following: dict[str, Counter[str]] = {}
    for each in rollouts:
        for call, after in pairwise(each.calls):
            if call.epochs:
                said = after.tool if after.value is None else f"{after.tool} {after.value:g}"
                following.setdefault(_kind(call.val_loss), Counter())[said] += 1
    return {
        kind: {"cases": found.total()}
        | {said: round(count / found.total(), 2) for said, count in found.most_common(3)}
        for kind, found in sorted(following.items())
    }


def _kind(loss: float | None) -> str:
    if loss is None:
        return "a divergence"
    if loss > GUESSING - 0.1:
        return "a loss like guessing"
    return "a loss below it" if loss > GUESSING - 1 else "a loss far below it"


def _spread(rates: Sequence[float]) -> dict[str, Any]:
    """Quartiles, and the standard deviation in decades."""
    if len(rates) < FEWEST:
        return {}
    return {
        "quartiles": [float(f"{value:.2g}") for value in quantiles(rates, n=4)],
        "decades": round(stdev(map(log10, rates)), 2),
    }


def draw(
    rollouts: Sequence[Rollout], validation: Sequence[Sequence[float]], count: int, path: Path
) -> None:
    """The mean return of each step, of each part of the run with its interval, and validation."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = sorted({each.step for each in rollouts})
    means = [fmean(each.episode_return for each in rollouts if each.step == n) for n in steps]
    axes.plot(steps, means, ".", color="#bbbbbb", markersize=4, label="a step of training")
    middles, values = [], []
    for part in parts(rollouts, count):
        middles.append(fmean(each.step for each in part))
        values.append(told(by_start(part).values()))
    _with_intervals(axes, middles, values, "-o", "#0072b2", "a tenth of the run, 95%")
    ends = [0, steps[-1] + 1]
    _with_intervals(axes, ends, validation, "D", "#d55e00", "validation, before and after")
    axes.axhline(0, color=plots.FAINT, linewidth=0.8)
    axes.set(xlabel="steps, of 32 rollouts each", ylabel="return")
    axes.legend(fontsize=8, loc="lower right")
    plots.save(figure, path)


def _with_intervals(
    axes: Any,
    places: Sequence[float],
    values: Sequence[Sequence[float]],
    style: str,
    colour: str,
    label: str,
) -> None:
    below = [value - low for value, low, _ in values]
    above = [high - value for value, _, high in values]
    axes.errorbar(
        places,
        [value for value, _, _ in values],
        [below, above],
        fmt=style,
        color=colour,
        markersize=5,
        capsize=3,
        label=label,
    )
