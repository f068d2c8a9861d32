"""The panels of a cluster's picture: curves over its clock, and lanes of cells.

Cells have one hue each, and what is usual is almost clear: so the same picture suits a light page
and a dark one, and what differs catches the eye.
"""

# pyright: strict

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ml_trainer_env.events import MICRO_SHARDS
from ml_trainer_env.server.desk import lanes
from ml_trainer_env.server.desk.curves import BEST, LOST, RATE, SHADE, TRAIN, VAL, Figure
from ml_trainer_env.server.desk.lanes import Kind, Mark, Row, Span
from ml_trainer_env.server.desk.story import Story

SYMBOLS: dict[Kind, tuple[str, str]] = {  # and their colours
    "incident": ("x", LOST),
    "restore": ("triangle-left", VAL),
    "ranks": ("square", VAL),
    "data": ("diamond", VAL),
    "diagnose": ("circle-open", VAL),
    "settings": ("circle", VAL),
}
CALM, QUEER, SPOILT = "40,135,205", "136,90,190", "213,94,0"  # hues: time, gradients, data


@dataclass(frozen=True, slots=True)
class Lane:
    """A panel of rows of cells."""

    title: str
    rows: list[Row]
    told: list[list[str]]
    hue: str
    usual: float
    striking: float  # from here on a cell has the full colour
    count: int  # of rows, before there are any, too
    row: int  # pixels


@dataclass(frozen=True, slots=True)
class Place:
    """Of a panel: its axis, and its part of the figure's height."""

    axis: str
    bottom: float
    top: float


def lanes_of(along: Sequence[Span], ranks: int) -> list[Lane]:
    """From above to below."""
    row = 14 if ranks > 4 else 20
    hover = _told(along)
    spoilt = [
        [f"shard {shard}, {_when(span)}: {_value(loss, 'loss', '')}" for span, loss in pairs]
        for shard in range(MICRO_SHARDS)
        for pairs in [_shard_losses(along, shard)]
    ]
    loud, apart = lanes.loudness(along), lanes.dissent(along)
    of_ranks = (
        ("Ranks: seconds a step", lanes.slowness(along), CALM, 1.0, 2.0),
        ("Gradient norm: unlike the other ranks'", loud, QUEER, 1.0, 3.0),
        ("Gradient direction: apart from the others", apart, QUEER, 0.0, 0.3),
    )
    found = [
        Lane(title, rows, hover, hue, usual, striking, ranks, row)
        for title, rows, hue, usual, striking in of_ranks
    ]
    title = "Data shards: loss above the median"
    shards = Lane(title, lanes.excess(along), spoilt, SPOILT, 0.0, 1.0, MICRO_SHARDS, 8)
    return [*found, shards]


def _shard_losses(along: Sequence[Span], shard: int) -> list[tuple[Span, float | None]]:
    return [(s, s.report.shard_losses[shard] if s.report.shard_losses else None) for s in along]


def _told(along: Sequence[Span]) -> list[list[str]]:
    """Of each rank, span by span, in words."""
    rows: list[list[str]] = []
    for rank in range(lanes.ranks(along)):
        row: list[str] = []
        for span in along:
            each = span.report.ranks[rank] if span.report.ranks else None
            told = f"rank {rank}, {_when(span)}"
            if each:
                told += f": {_value(each.step_seconds, '', 's a step')}<br>"
                told += f"{_value(each.gradient_norm, 'norm', '')}, "
                told += f"{_value(each.agreement, 'agreement', '')}, {len(each.shards)} shards"
            row.append(told)
        rows.append(row)
    return rows


def _when(span: Span) -> str:
    return f"{span.start:.0f}-{span.end:.0f} s"


def _value(value: float | None, before: str, after: str) -> str:
    return " ".join(filter(None, (before, "–" if value is None else f"{value:.3g}", after)))


# Traces -------------------------------------------------------------------------------------------


def _line(
    place: Place, name: str, x: Sequence[float], y: Sequence[float | None], **more: Any
) -> Figure:
    base = {"type": "scatter", "yaxis": place.axis, "x": list(x), "y": list(y), "name": name}
    return base | {"mode": "lines", "hovertemplate": "%{y:.3f}"} | more


def counterfactuals(story: Story, place: Place) -> Iterator[Figure]:
    """What would have become of it, and what has."""
    assert story.forks
    nothing, best = story.forks.curve, story.forks.best_curve
    runs = (
        ("nothing done", nothing, {"color": SHADE, "width": 2, "dash": "5px,4px"}),
        ("best remedy", best, {"color": RATE, "width": 2}),
    )
    for name, points, look in runs:
        if points:
            x, y = [p.seconds for p in points], [p.val / 1000 for p in points]
            yield _line(place, name, x, y, line=look)
    x = [span.end for span in lanes.spans(story.points)]
    y = [point.val_loss for point in story.points]
    look = {"color": VAL, "width": 2.6}
    yield _line(place, "this run", x, y, line=look, connectgaps=True)


def losses(
    story: Story, along: Sequence[Span], place: Place, other: Story | None
) -> Iterator[Figure]:
    """Means of windows, step by step, and on the validation data."""
    x, y = _step_by_step(along, lambda span: span.report.losses)
    look = {"color": TRAIN, "width": 1}
    yield _line(place, "step by step", x, y, line=look, opacity=0.35, hoverinfo="skip")
    trained = [span for span in along if span.trains]
    means = [span.record.train_loss for span in trained]
    yield _line(
        place, "train loss", [s.end for s in trained], means, line={"color": TRAIN, "width": 1.8}
    )
    if other:
        theirs = lanes.spans(other.points)
        dashed = {"color": VAL, "width": 1.8, "dash": "5px,4px"}
        x, y = [span.end for span in theirs], [span.record.val_loss for span in theirs]
        yield _line(place, "val loss (other)", x, y, line=dashed, connectgaps=True)
    yield _line(
        place,
        "val loss",
        [span.end for span in along],
        [span.record.val_loss for span in along],
        mode="lines+markers",
        connectgaps=True,
        line={"color": VAL, "width": 2.2},
        marker={"size": 4},
    )


def _step_by_step(
    along: Sequence[Span], of: Callable[[Span], Sequence[float | None]]
) -> tuple[list[float], list[float | None]]:
    """When about each step was made, and its value; a gap where nothing was trained."""
    x: list[float] = []
    y: list[float | None] = []
    for span in along:
        steps = of(span)
        pace = (span.end - span.start) / max(1, len(steps))
        x += [round(span.start + pace * number, 1) for number in range(1, len(steps) + 1)]
        y += steps
        if not steps:
            x.append(span.end)
            y.append(None)
    return x, y


def norms(along: Sequence[Span], place: Place) -> Iterator[Figure]:
    """Of the gradient of all ranks together."""
    x, y = _step_by_step(along, lambda span: span.report.gradient_norms)
    yield _line(place, "gradient norm", x, y, line={"color": TRAIN, "width": 1})


def rates(along: Sequence[Span], place: Place) -> Iterator[Figure]:
    """The learning rate that was in force at the end of each window."""
    known = [(s.end, s.report.learning_rate) for s in along if s.report.learning_rate is not None]
    x, y = [end for end, _ in known], [rate for _, rate in known]
    look = {"color": RATE, "width": 2}
    yield _line(place, "learning rate", x, y, line=look, hovertemplate="%{y:.3g}")


def progress(story: Story, along: Sequence[Span], place: Place) -> Iterator[Figure]:
    """Where the model stands, beside the pace of a healthy cluster."""
    terms = story.task.cluster
    assert terms
    end = terms.world.deadline
    look = {"color": SHADE, "width": 1.4, "dash": "5px,4px"}
    pace = [0.0, end / terms.step_seconds]
    yield _line(place, "healthy pace", [0.0, end], pace, line=look, hoverinfo="skip")
    steps = [0.0, *(float(span.report.step) for span in along)]
    ends = [0.0, *(span.end for span in along)]
    yield _line(
        place, "step", ends, steps, line={"color": VAL, "width": 2}, hovertemplate="%{y:.0f}"
    )
    kept = lanes.checkpoints(along)
    yield _line(
        place,
        "checkpoint",
        [at for at, _ in kept],
        [float(step) for _, step in kept],
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 8, "color": BEST, "line": {"width": 2}},
        hovertemplate="of step %{y:.0f}",
    )


def cells(along: Sequence[Span], lane: Lane, place: Place) -> Figure:
    """A lane, span by span."""
    return {
        "type": "heatmap",
        "yaxis": place.axis,
        "x": [0.0, *(span.end for span in along)] if along else [],
        "y": list(range(len(lane.rows))) if along else [],
        "z": lane.rows if along else [],
        "text": lane.told,
        "name": lane.title,
        "zmin": lane.usual,
        "zmax": lane.striking,
        "colorscale": [[0, f"rgba({lane.hue},0.16)"], [1, f"rgba({lane.hue},1)"]],
        "showscale": False,
        "xgap": 1,
        "ygap": 1 if lane.row < 10 else 2,
        "hoverongaps": False,
        "hovertemplate": "%{text}<extra></extra>",
    }


def marked(marks: Sequence[Mark], strip: Place) -> Iterator[Figure]:
    """What happened, above all panels."""
    if not marks:
        return
    marks = sorted(marks, key=lambda mark: mark.kind == "incident")  # over what was done about it
    yield {
        "type": "scatter",
        "yaxis": strip.axis,
        "x": [mark.seconds for mark in marks],
        "y": [0.5] * len(marks),
        "mode": "markers",
        "name": "events",
        "marker": {
            "symbol": [SYMBOLS[mark.kind][0] for mark in marks],
            "color": [SYMBOLS[mark.kind][1] for mark in marks],
            "size": 9,
            "line": {"width": 1.5, "color": [SYMBOLS[mark.kind][1] for mark in marks]},
        },
        "text": [mark.text for mark in marks],
        "hovertemplate": "%{text}<extra></extra>",
    }
