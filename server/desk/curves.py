"""The curves of an episode as a Plotly figure: losses, accuracies and learning rate.

Colours are Okabe and Ito's, which colour-blind people can tell apart, and train and val differ in
shape too. They are chosen for a light page; `desk.css` turns them, the text and the grid into their
counterparts for a dark one. Nothing is loaded from elsewhere: Gradio brings Plotly's script along.
"""

# plotly leaves most types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ml_trainer_env.server.desk import words
from ml_trainer_env.server.desk.story import Era, Point, Story

TRAIN, VAL, RATE = "#d55e00", "#0072b2", "#009e73"
BEST, LOST, SHADE = "#e69f00", "#cc79a7", "#808080"
INK, FAINT = "#555555", "#e4e4e7"  # replaced by the page's own: desk.css

HEIGHT = 560  # pixels
ROOM = 20  # the epoch axis grows by this many
NARROW = 0.045  # of the axis: an era narrower than this has no room for its number
MOST_DECADES = 3  # labels of the learning rate's axis
LOSS, ACCURACY, LEARNING_RATE = 1, 2, 3  # rows

Values = Callable[[Point], float | None]

LINES: tuple[tuple[int, str, str, Values], ...] = (
    (LOSS, "train loss", TRAIN, lambda point: point.train_loss),
    (LOSS, "val loss", VAL, lambda point: point.val_loss),
    (ACCURACY, "train accuracy", TRAIN, lambda point: point.train_accuracy),
    (ACCURACY, "val accuracy", VAL, lambda point: point.val_accuracy),
)


def figure(story: Story | None, other: Story | None = None) -> go.Figure:
    """The curves of `story`, over those of `other`, which are dashed. Without a story: the axes."""
    shown = [each for each in (story, other) if each]
    last = max((point.epoch for each in shown for point in each.points), default=0)
    budget = max((each.status.max_epochs for each in shown), default=ROOM)
    right = min(budget, max(ROOM, math.ceil((last + 1) / ROOM) * ROOM)) + 0.5
    drawn = make_subplots(
        rows=3, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.42, 0.42, 0.16]
    )
    if other:
        _lines(drawn, other, faint=True)
        _best(drawn, other, faint=True)
    if story:
        _lines(drawn, story)
        _best(drawn, story)
        _eras(drawn, story.eras, right)
        _divergences(drawn, story.points)
    _layout(drawn, shown, right)
    return drawn


def _lines(drawn: go.Figure, story: Story, *, faint: bool = False) -> None:
    after = " (other)" if faint else ""
    epochs = [point.epoch for point in story.points]
    for row, name, colour, value in LINES:
        values = [value(point) for point in story.points]
        known = [index for index, each in enumerate(values) if each is not None]
        isolated = len(known) == 1 or len(known) < len(values) / 2  # a line would hide the points
        drawn.add_scatter(
            row=row,
            col=1,
            x=epochs,
            y=values,
            name=name + after,
            mode="lines+markers" if isolated else "lines",
            line={"color": colour, "width": 2.2 if colour == VAL else 1.6, **_dash(faint)},
            marker={"size": 5, "symbol": "circle" if colour == VAL else "square"},
            opacity=0.6 if faint else 1,
            connectgaps=not any(point.diverged for point in story.points),
            hovertemplate="%{y:.1%}" if row == ACCURACY else "%{y:.4f}",
        )
    drawn.add_scatter(
        row=LEARNING_RATE,
        col=1,
        x=epochs,
        y=[point.plan.learning_rate or None for point in story.points],
        name="learning rate" + after,
        mode="lines+markers" if len(epochs) == 1 else "lines",
        line={"color": RATE, "width": 2, "shape": "hvh", **_dash(faint)},
        marker={"size": 5},
        opacity=0.6 if faint else 1,
        hovertemplate="%{y:.3g}",
    )


def _dash(faint: bool) -> dict[str, str]:
    return {"dash": "5px,4px"} if faint else {}


def _best(drawn: go.Figure, story: Story, *, faint: bool = False) -> None:
    best = story.best
    accuracy = story.status.best_val_accuracy
    if best is None or accuracy is None:
        return
    drawn.add_scatter(
        row=ACCURACY,
        col=1,
        x=[best.epoch],
        y=[accuracy],
        name="best epoch" + (" (other)" if faint else ""),
        mode="markers",
        marker={
            "symbol": "star-open" if faint else "star",
            "size": 15,
            "color": BEST,
            "line": {"color": INK, "width": 1},
        },
        hovertemplate="%{y:.1%}",
    )
    if not faint:
        drawn.add_annotation(
            row=ACCURACY,
            col=1,
            x=best.epoch,
            y=accuracy,
            text=f"best {words.percent(accuracy)}, epoch {best.epoch}",
            showarrow=False,
            yshift=-22,
            xanchor="right" if best.epoch > ROOM / 2 else "left",
            bgcolor="rgba(255,255,255,0.75)",
            font={"size": 12},
        )


def _eras(drawn: go.Figure, ruled: Sequence[Era], right: float) -> None:
    """Every other band is shaded, and each has a number that the list below explains."""
    if len(ruled) < 2:
        return
    for number, era in enumerate(ruled, start=1):
        start, end = era.first - 0.5, era.last + 0.5
        if number % 2 == 0:
            drawn.add_shape(
                type="rect",
                layer="below",
                xref="x",
                yref="paper",
                x0=start,
                x1=end,
                y0=0,
                y1=1,
                fillcolor=SHADE,
                opacity=0.13,
                line_width=0,
            )
        if (end - start) / right >= NARROW:
            drawn.add_annotation(
                x=(start + end) / 2,
                y=1,
                xref="x",
                yref="paper",
                yanchor="bottom",
                text=f"<b>{number}</b>",
                showarrow=False,
                font={"size": 12},
            )


def _divergences(drawn: go.Figure, points: Sequence[Point]) -> None:
    for point in points:
        if point.diverged:
            drawn.add_vline(x=point.epoch, line={"color": LOST, "width": 2, "dash": "dot"})
            drawn.add_annotation(
                x=point.epoch,
                y=0.99,
                xref="x",
                yref="paper",
                yanchor="top",
                xanchor="right" if point.epoch > ROOM / 2 else "left",
                text=" ✕ diverged ",
                showarrow=False,
                font={"size": 12},
            )


def _layout(drawn: go.Figure, shown: Sequence[Story], right: float) -> None:
    axis = {
        "gridcolor": FAINT,
        "zeroline": False,
        "linecolor": FAINT,
        "tickfont": {"size": 12},
        "fixedrange": True,  # so that a finger scrolls the page
        "automargin": False,
    }
    drawn.update_layout(
        template="none",
        height=HEIGHT,
        margin={"l": 52, "r": 10, "t": 44, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        hovermode="x unified",
        hoverlabel={"bgcolor": "#27272a", "font": {"color": "#ffffff", "size": 12}},
        hoversubplots="axis",
        font={"family": "system-ui, sans-serif", "color": INK, "size": 12},
    )
    drawn.update_xaxes(**axis, range=[0.5, right], showgrid=False)
    drawn.update_xaxes(row=LEARNING_RATE, col=1, title={"text": "epoch", "standoff": 6})
    drawn.update_yaxes(**axis, nticks=6)
    drawn.update_yaxes(row=LOSS, col=1, **_range(shown, LOSS, (0.0, 2.5)))
    drawn.update_yaxes(row=ACCURACY, col=1, tickformat=".0%", **_range(shown, ACCURACY, (0.0, 1.0)))
    low, high = _decades([p.plan.learning_rate for each in shown for p in each.points])
    apart = max(1, math.ceil((high - low) / MOST_DECADES))
    decades = [*range(math.ceil(low), math.floor(high) + 1, apart)]
    drawn.update_yaxes(
        row=LEARNING_RATE,
        col=1,
        type="log",
        range=[low, high],
        tickvals=[10.0**decade for decade in decades],
        ticktext=[f"10<sup>{decade}</sup>" for decade in decades],
    )
    for row, text in ((LOSS, "Loss"), (ACCURACY, "Accuracy"), (LEARNING_RATE, "Learning rate")):
        drawn.add_annotation(
            text=f"<b>{text}</b>",
            xref="paper",
            yref=f"y{row if row > 1 else ''} domain",
            x=0.004,
            y=1,
            xanchor="left",
            yanchor="bottom",
            yshift=18 if row == LOSS else 0,  # above the numbers of the bands
            showarrow=False,
            font={"size": 12},
        )


def _range(shown: Sequence[Story], row: int, otherwise: tuple[float, float]) -> dict[str, Any]:
    """An axis without data has a range that data will have."""
    values = list(_values(shown, row))
    if not values:
        return {"range": list(otherwise)}
    low, high = min(values), max(values)
    margin = max((high - low) * 0.09, 0.01)
    return {"range": [low - margin, high + margin]}


def _values(shown: Sequence[Story], row: int) -> Iterator[float]:
    for each in shown:
        for of_row, _, _, value in LINES:
            if of_row == row:
                yield from (v for point in each.points if (v := value(point)) is not None)


def _decades(rates: Sequence[float]) -> tuple[float, float]:
    """The exponents between which all rates lie, with room for a line that is on the edge."""
    logs = [math.log10(rate) for rate in rates if rate > 0] or [-3.0]
    low, high = min(logs), max(logs)
    return min(low - 0.25, math.floor(low + 0.25)), max(high + 0.25, math.ceil(high - 0.25))
