"""The picture of a cluster: losses, progress, and lanes of ranks and data shards, over its clock.

Plain data in Plotly's JSON, as in `curves.py`.
"""

# pyright: strict

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ml_trainer_env.server.desk import cluster_panels as panels
from ml_trainer_env.server.desk import curves, lanes
from ml_trainer_env.server.desk.cluster_panels import Lane, Place
from ml_trainer_env.server.desk.curves import LOST, RATE, SHADE, VAL, Figure
from ml_trainer_env.server.desk.lanes import Mark, Span, Stretch
from ml_trainer_env.server.desk.story import Story

GAP = 34  # pixels between two panels: the title of the lower one
TOP, BOTTOM = 24, 40  # pixels around them
STRIP, COURSE, LOSS, NORM, RATES, PROGRESS = 12, 160, 190, 64, 56, 84  # pixels of the panels
FOLLOWING = 0.032  # of the clock: marks that are nearer than this share a label
FEW_DECADES = 2.0
JUDGED_FROM = 0.4  # of the clock: until then no two runs of an instance differ


@dataclass(frozen=True, slots=True)
class Laid:
    """The panels' places, from above to below."""

    strip: Place  # of the marks
    course: Place | None  # what it came to: with the grade
    loss: Place
    norm: Place
    rate: Place
    step: Place
    lanes: Sequence[Place]  # three of ranks, one of data shards

    @property
    def titled(self) -> list[tuple[str, Place]]:
        """All panels but the lanes."""
        found = [("What it came to: validation loss", self.course)] if self.course else []
        return [
            *found,
            ("Loss", self.loss),
            ("Gradient norm, step by step", self.norm),
            ("Learning rate in force", self.rate),
            ("Step of the model", self.step),
        ]


def figure(story: Story, other: Story | None = None) -> Figure:
    """The picture of `story`; of `other` the validation loss is dashed."""
    along, deadline = lanes.spans(story.points), _deadline(story)
    assert story.task.cluster
    drawn = panels.lanes_of(along, story.task.cluster.world.ranks)
    height, laid = _laid(drawn, with_course=story.forks is not None)
    data = [*panels.counterfactuals(story, laid.course)] if laid.course else []
    data += [*panels.losses(story, along, laid.loss, other), *panels.norms(along, laid.norm)]
    data += [*panels.rates(along, laid.rate), *panels.progress(story, along, laid.step)]
    data += [panels.cells(along, lane, at) for lane, at in zip(drawn, laid.lanes, strict=True)]
    marks = lanes.marks(along)
    bands, told = _absences(along, laid.lanes)
    titled = [*laid.titled, *((lane.title, at) for lane, at in zip(drawn, laid.lanes, strict=True))]
    layout = _layout(height, deadline, [laid.strip, *(place for _, place in titled)])
    layout[_of(laid.strip)] |= {"range": [0, 1], "visible": False}
    layout |= _ranges(story, along, laid, other) | _rows(drawn, laid.lanes)
    layout["shapes"] = [*bands, *_verticals(marks)]
    layout["annotations"] = [*_titles(titled), *told, *_numbers(marks, deadline)]
    layout["annotations"] += [*_worths(story, laid.course)] if laid.course else []
    layout["annotations"] += [*_hosts(along, laid.lanes[0])]
    return {"data": [*data, *panels.marked(marks, laid.strip)], "layout": layout}


def _laid(drawn: Sequence[Lane], *, with_course: bool) -> tuple[int, Laid]:
    """The figure's height, and where all is."""
    sizes = [STRIP, *([COURSE] if with_course else []), LOSS, NORM, RATES, PROGRESS]
    height, places = _places([*sizes, *(lane.count * lane.row for lane in drawn)])
    strip, *rest = places
    course = rest.pop(0) if with_course else None
    loss, norm, rate, step, *of_lanes = rest
    return height, Laid(strip, course, loss, norm, rate, step, of_lanes)


def _places(sizes: Sequence[int]) -> tuple[int, list[Place]]:
    """The figure's height, and the panels from above to below."""
    inner = sum(sizes) + GAP * (len(sizes) - 1)
    places: list[Place] = []
    at = inner
    for number, size in enumerate(sizes, start=1):
        axis = "y" if number == 1 else f"y{number}"
        places.append(Place(axis, max(0.0, (at - size) / inner), at / inner))
        at -= size + GAP
    return inner + TOP + BOTTOM, places


def _layout(height: int, deadline: float, places: Sequence[Place]) -> Figure:
    base = curves.base_layout(height)
    axis = curves.AXIS
    base |= {"margin": {"l": 46, "r": 12, "t": TOP, "b": BOTTOM}, "hovermode": "closest"}
    base["xaxis"] = axis | {
        "anchor": places[-1].axis,
        "range": [0, deadline],
        "showgrid": False,
        "title": {"text": "seconds on the clock", "standoff": 6},
    }
    for place in places:
        base[_of(place)] = axis | {
            "domain": [place.bottom, place.top],
            "anchor": "x",
            "nticks": 5,
        }
    return base


def _ranges(story: Story, along: Sequence[Span], laid: Laid, other: Story | None) -> Figure:
    found: Figure = {}
    later = [span for span in along if span.end > 0.12 * _deadline(story)] or along
    values = [v for s in later for v in (s.record.val_loss, s.record.train_loss) if v is not None]
    if other:
        values += [point.val_loss for point in other.points[5:] if point.val_loss is not None]
    found[_of(laid.loss)] = _axis(laid.loss) | {"range": _around(values or [1.8, 3.0])}
    found[_of(laid.norm)] = _axis(laid.norm) | _logarithmic(
        [value for span in along for value in span.report.gradient_norms if value]
    )
    rates = [span.report.learning_rate or 0.0 for span in along]
    found[_of(laid.rate)] = _axis(laid.rate) | {
        "range": [0, 1.15 * max(rates, default=0.0) or 0.01],
        "nticks": 3,
    }
    terms = story.task.cluster
    assert terms
    top = terms.world.deadline / terms.step_seconds * 1.06
    found[_of(laid.step)] = _axis(laid.step) | {"range": [0, top], "nticks": 4}
    if story.forks and laid.course:
        since = JUDGED_FROM * _deadline(story)
        judged = [s.record.val_loss for s in along if s.end > since and s.record.val_loss]
        of = (*story.forks.curve, *story.forks.best_curve)
        judged += [point.val / 1000 for point in of if point.seconds > since]
        found[_of(laid.course)] = _axis(laid.course) | {"range": _around(judged)}
    return found


def _logarithmic(values: Sequence[float]) -> Figure:
    """An axis with a label or two a decade."""
    low, high = _around([math.log10(value) for value in values or (0.3, 3.0)])
    steps = (1, 3) if high - low < FEW_DECADES else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def _around(values: Sequence[float]) -> list[float]:
    margin = max(0.02, (max(values) - min(values)) * 0.1)
    return [min(values) - margin, max(values) + margin]


def _rows(drawn: Sequence[Lane], places: Sequence[Place]) -> Figure:
    """The axes of the lanes: rank 0 is the highest."""
    found: Figure = {}
    for lane, place in zip(drawn, places, strict=True):
        ticks = list(range(lane.count)) if lane.row > 10 else list(range(0, lane.count, 5))
        found[_of(place)] = _axis(place) | {
            "range": [lane.count - 0.5, -0.5],
            "tickvals": ticks,
            "showgrid": False,
            "showline": False,
            "tickfont": {"size": 11},
        }
    return found


def _axis(place: Place) -> Figure:
    return curves.AXIS | {"domain": [place.bottom, place.top], "anchor": "x", "nticks": 5}


def _of(place: Place) -> str:
    return place.axis.replace("y", "yaxis")


def _deadline(story: Story) -> float:
    assert story.task.cluster
    return story.task.cluster.world.deadline


def _titles(titled: Sequence[tuple[str, Place]]) -> Iterator[Figure]:
    for title, place in titled:
        corner = {"xanchor": "left", "yanchor": "bottom", "yshift": 2}
        yield curves.text(f"<b>{title}</b>", 0, place.top, "paper", "paper", **corner)


def _verticals(marks: Sequence[Mark]) -> Iterator[Figure]:
    for at, kind in sorted({(mark.seconds, mark.kind == "incident") for mark in marks}):
        stroke = {"color": LOST if kind else VAL, "width": 1, "dash": "dot"}
        place = {"xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1}
        yield {"type": "line", "line": stroke, "opacity": 0.75} | place


def _numbers(marks: Sequence[Mark], deadline: float) -> Iterator[Figure]:
    """Above all: the numbers by which the list below explains the marks."""
    groups: list[list[int]] = []
    for number, mark in enumerate(marks):
        near = groups and mark.seconds - marks[groups[-1][0]].seconds < FOLLOWING * deadline
        if near:
            groups[-1].append(number)
        else:
            groups.append([number])
    for group in groups:
        first, last = group[0] + 1, group[-1] + 1
        told = f"<b>{first}</b>" if first == last else f"<b>{first}–{last}</b>"
        at = marks[group[0]].seconds
        yield curves.text(told, at, 1, "x", "paper", yanchor="bottom")


def _absences(along: Sequence[Span], places: Sequence[Place]) -> tuple[list[Figure], list[Figure]]:
    """Bands in the lanes, and in the first what they are."""
    *of_ranks, of_shards = places
    bands = [_band(each, place) for place in of_ranks for each in lanes.absences(along)]
    bands += [_band(each, of_shards) for each in lanes.quarantines(along)]
    told = [
        curves.text(
            "out" if each.state == "out" else "no answer",
            (each.start + each.end) / 2,
            each.row,
            "x",
            of_ranks[0].axis,
        )
        for each in lanes.absences(along)
    ]
    return bands, told


def _band(stretch: Stretch, place: Place) -> Figure:
    return {
        "type": "rect",
        "xref": "x",
        "yref": place.axis,
        "x0": stretch.start,
        "x1": stretch.end,
        "y0": stretch.row - 0.42,
        "y1": stretch.row + 0.42,
        "fillcolor": SHADE if stretch.state == "out" else LOST,
        "opacity": 0.35,
        "line": {"width": 0},
    }


def _worths(story: Story, place: Place) -> Iterator[Figure]:
    """The healthy steps that each course is worth: on the left, where all are still one."""
    grade, forks = story.status.grade, story.forks
    if grade is None or forks is None:
        return
    courses = [("best remedy", RATE, "steps_of_best")] if forks.best_curve else []
    courses += [("this run", VAL, "steps"), ("nothing done", SHADE, "steps_of_nothing")]
    for number, (name, colour, steps) in enumerate(courses):
        worth = grade.components[0].inputs[steps]
        told = f'<span style="color:{colour}">━</span> {name}: {worth:.0f} steps'
        corner = {"xanchor": "left", "yanchor": "top", "yshift": -20 - 20 * number}
        corner["bgcolor"] = "#ffffff"  # the page's own: desk.css
        yield curves.text(told, 0.02, place.top, "paper", "paper", **corner)


def _hosts(along: Sequence[Span], place: Place) -> Iterator[Figure]:
    for at, rank in lanes.fresh_hosts(along):
        look = {"xanchor": "left", "font": {"size": 11}}
        yield curves.text("▸ new host", at, rank, "x", place.axis, **look)
