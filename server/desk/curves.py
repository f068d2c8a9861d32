"""The curves of an episode: losses, accuracies and learning rate, one above another.

A figure is plain data in Plotly's JSON. Building it takes less than a millisecond; Plotly's own
classes took forty, too much for ten pictures a second on a server that trains, so they only check
it, in a test. Nothing is loaded from elsewhere: Gradio brings Plotly's script along.

Colours are Okabe and Ito's, which colour-blind people can tell apart. They are chosen for a light
page; `desk.css` turns them, the text and the grid into their counterparts for a dark one.
"""

# pyright: strict

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ml_trainer_env.models import EpochRecord
from ml_trainer_env.server.desk import words
from ml_trainer_env.server.desk.story import Era, Story

TRAIN, VAL, RATE = "#d55e00", "#0072b2", "#009e73"
BEST, LOST, SHADE = "#e69f00", "#cc79a7", "#808080"
INK, FAINT = "#555555", "#e4e4e7"  # replaced by the page's own: desk.css

HEIGHT = 560  # pixels
ROOM = 20  # the epoch axis grows by this many
NARROW = 0.045  # of the axis: an era narrower than this has no room for its number
MOST_DECADES = 3  # labels of the learning rate's axis

Figure = dict[str, Any]
Values = Callable[[EpochRecord], float | None]

AXIS: Figure = {
    "gridcolor": FAINT,
    "zeroline": False,
    "showline": True,
    "linecolor": FAINT,
    "tickfont": {"size": 12},
    "fixedrange": True,  # so that a finger scrolls the page
}


class Panel(NamedTuple):
    """One of the three diagrams."""

    axis: str
    title: str
    bottom: float  # of the figure's height
    top: float

    @property
    def layout(self) -> str:
        """The name of its axis in a layout: `yaxis2` for `y2`."""
        return self.axis.replace("y", "yaxis")


LOSS = Panel("y", "Loss", 0.62, 1.0)
ACCURACY = Panel("y2", "Accuracy", 0.20, 0.55)
LEARNING_RATE = Panel("y3", "Learning rate", 0.0, 0.13)

LINES: tuple[tuple[Panel, str, str, Values], ...] = (
    (LOSS, "train loss", TRAIN, lambda point: point.train_loss),
    (LOSS, "val loss", VAL, lambda point: point.val_loss),
    (ACCURACY, "train accuracy", TRAIN, lambda point: point.train_accuracy),
    (ACCURACY, "val accuracy", VAL, lambda point: point.val_accuracy),
)


def figure(story: Story, other: Story | None = None) -> Figure:
    """The curves of `story`, over those of `other`, which are dashed."""
    shown = [story, other] if other else [story]
    last = max((point.epoch for each in shown for point in each.points), default=0)
    budget = max(each.status.max_epochs for each in shown)
    right = min(budget, max(ROOM, math.ceil((last + 1) / ROOM) * ROOM)) + 0.5
    traces = [*_traces(other, faint=True), *_traces(story)] if other else _traces(story)
    traces = [*_pool(story), *traces]
    bands, numbers = _eras(story.eras, right)
    losses, notes = _divergences(story.points)
    layout = _layout(shown, right)
    layout["shapes"] = [*bands, *losses]
    layout["annotations"] = [*_titles(), *numbers, *notes, *_graded_told(story)]
    return {"data": traces, "layout": layout}


def _pool(story: Story) -> Iterator[Figure]:
    """Faint, behind all else."""
    for curve in story.pool:
        yield {
            "type": "scatter",
            "yaxis": ACCURACY.axis,
            "x": list(range(1, len(curve) + 1)),
            "y": list(curve),
            "mode": "lines",
            "line": {"color": SHADE, "width": 1},
            "opacity": 0.35,
            "hoverinfo": "skip",
        }


def _traces(story: Story, *, faint: bool = False) -> list[Figure]:
    after = " (other)" if faint else ""
    look = {"opacity": 0.6 if faint else 1.0}
    dash = {"dash": "5px,4px"} if faint else {}
    epochs = [point.epoch for point in story.points]
    whole = not any(point.diverged for point in story.points)
    traces: list[Figure] = []
    for panel, name, colour, value in LINES:
        values = [value(point) for point in story.points]
        known = sum(each is not None for each in values)
        sparse = known == 1 or known < len(values) / 2  # a line alone would hide the points
        traces.append(
            look
            | {
                "type": "scatter",
                "yaxis": panel.axis,
                "x": epochs,
                "y": values,
                "name": name + after,
                "mode": "lines+markers" if sparse else "lines",
                "line": {"color": colour, "width": 2.2 if colour == VAL else 1.6} | dash,
                "marker": {"size": 5, "symbol": "circle" if colour == VAL else "square"},
                "connectgaps": whole,
                "hovertemplate": "%{y:.1%}" if panel is ACCURACY else "%{y:.4f}",
            }
        )
    traces.append(
        look
        | {
            "type": "scatter",
            "yaxis": LEARNING_RATE.axis,
            "x": epochs,
            "y": [point.learning_rate or None for point in story.points],
            "name": "learning rate" + after,
            "mode": "lines+markers" if len(epochs) == 1 else "lines",
            "line": {"color": RATE, "width": 2, "shape": "hvh"} | dash,
            "marker": {"size": 5},
            "hovertemplate": "%{y:.3g}",
        }
    )
    if story.graded:
        traces.append(
            {
                "type": "scatter",
                "yaxis": ACCURACY.axis,
                "x": [story.graded.epoch],
                "y": [story.graded.val_accuracy],
                "name": "graded epoch" + after,
                "mode": "markers",
                "marker": {
                    "symbol": "star-open" if faint else "star",
                    "size": 15,
                    "color": BEST,
                    "line": {"color": INK, "width": 1},
                },
                "hovertemplate": "%{y:.1%}",
            }
        )
    return traces


def text(text: str, x: float, y: float, xref: str, yref: str, **more: Any) -> Figure:
    """An annotation."""
    place = {"x": x, "y": y, "xref": xref, "yref": yref}
    return {"text": text, "showarrow": False, "font": {"size": 12}} | place | more


def _titles() -> Iterator[Figure]:
    for panel in (LOSS, ACCURACY, LEARNING_RATE):
        above = 18 if panel is LOSS else 0  # pixels: over the numbers of the bands
        corner = {"xanchor": "left", "yanchor": "bottom", "yshift": above}
        yield text(f"<b>{panel.title}</b>", 0.004, panel.top, "paper", "paper", **corner)


def _graded_told(story: Story) -> Iterator[Figure]:
    graded = story.graded
    if graded is None or graded.val_accuracy is None:
        return
    told = "graded" if story.status.done else "to be graded"
    yield text(
        f"{told}: {words.percent(graded.val_accuracy)}, epoch {graded.epoch}",
        graded.epoch,
        graded.val_accuracy,
        "x",
        ACCURACY.axis,
        yshift=-22,
        xanchor=_towards_middle(graded.epoch),
        bgcolor="rgba(255,255,255,0.75)",
    )


def _eras(ruled: Sequence[Era], right: float) -> tuple[list[Figure], list[Figure]]:
    """Bands and numbers: every other era is shaded, and the list below explains its number."""
    if len(ruled) < 2:
        return [], []
    bands: list[Figure] = []
    numbers: list[Figure] = []
    for number, era in enumerate(ruled, start=1):
        start, end = era.first - 0.5, era.last + 0.5
        if number % 2 == 0:
            place = {"xref": "x", "yref": "paper", "x0": start, "x1": end, "y0": 0, "y1": 1}
            look = {"fillcolor": SHADE, "opacity": 0.13, "line": {"width": 0}, "layer": "below"}
            bands.append({"type": "rect"} | place | look)
        if (end - start) / right >= NARROW:
            middle = (start + end) / 2
            numbers.append(text(f"<b>{number}</b>", middle, 1, "x", "paper", yanchor="bottom"))
    return bands, numbers


def _divergences(points: Sequence[EpochRecord]) -> tuple[list[Figure], list[Figure]]:
    """Lines, and what they mean."""
    at = [point.epoch for point in points if point.diverged]
    stroke = {"color": LOST, "width": 2, "dash": "dot"}
    lines = [
        {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1}
        | {"line": stroke}
        for x in at
    ]
    notes = [
        text(" ✕ diverged ", x, 0.99, "x", "paper", yanchor="top", xanchor=_towards_middle(x))
        for x in at
    ]
    return lines, notes


def _towards_middle(epoch: int) -> str:
    """Beside a line, on the side that has room."""
    return "right" if epoch > ROOM / 2 else "left"


def base_layout(height: int) -> Figure:
    """Of every figure."""
    return {
        "height": height,
        "margin": {"l": 52, "r": 10, "t": 44, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "x unified",
        "hoversubplots": "axis",
        "hoverlabel": {"bgcolor": "#27272a", "font": {"color": "#ffffff", "size": 12}},
        "font": {"family": "system-ui, sans-serif", "color": INK, "size": 12},
    }


def _layout(shown: Sequence[Story], right: float) -> Figure:
    axis = AXIS
    rates = [point.learning_rate or 0.0 for each in shown for point in each.points]
    return base_layout(HEIGHT) | {
        "xaxis": axis
        | {
            "anchor": LEARNING_RATE.axis,
            "range": [0.5, right],
            "showgrid": False,
            "title": {"text": "epoch", "standoff": 6},
        },
        LOSS.layout: _y(LOSS, axis) | _range(shown, LOSS, (0.0, 2.5)),
        ACCURACY.layout: _y(ACCURACY, axis)
        | {"tickformat": ".0%"}
        | _range(shown, ACCURACY, (0.0, 1.0)),
        LEARNING_RATE.layout: _y(LEARNING_RATE, axis) | _decades(rates),
    }


def _y(panel: Panel, axis: Figure) -> Figure:
    return axis | {"domain": [panel.bottom, panel.top], "anchor": "x", "nticks": 6}


def _range(shown: Sequence[Story], panel: Panel, otherwise: tuple[float, float]) -> Figure:
    """An axis without data has a range that data will have."""
    values = [
        known
        for each in shown
        for of_panel, _, _, value in LINES
        if of_panel is panel
        for point in each.points
        if (known := value(point)) is not None
    ]
    if panel is ACCURACY:
        values += [v for each in shown for curve in each.pool for v in curve if v is not None]
    if not values:
        return {"range": list(otherwise)}
    margin = max((max(values) - min(values)) * 0.09, 0.01)
    return {"range": [min(values) - margin, max(values) + margin]}


def _decades(rates: Sequence[float]) -> Figure:
    """A logarithmic axis on which all rates lie, with room for a line that is on the edge."""
    logs = [math.log10(rate) for rate in rates if rate > 0] or [-3.0]
    low = min(min(logs) - 0.25, math.floor(min(logs) + 0.25))
    high = max(max(logs) + 0.25, math.ceil(max(logs) - 0.25))
    apart = max(1, math.ceil((high - low) / MOST_DECADES))
    labelled = [*range(math.ceil(low), math.floor(high) + 1, apart)]
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": [10.0**decade for decade in labelled],
        "ticktext": [f"10<sup>{decade}</sup>" for decade in labelled],
    }
