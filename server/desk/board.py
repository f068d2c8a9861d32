"""The board: one episode at a glance. The same on every tab, whoever plays.

A picture is sent only when it would differ, so a page that watches costs the server little.
"""

# gradio leaves most types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import json
from typing import Any

import gradio as gr
from gradio.components.plot import PlotData

from ml_trainer_env.server.desk import cards, cluster_cards, cluster_curves, curves
from ml_trainer_env.server.desk.story import Story

Shown = dict[Any, Any]  # component -> value or update, as Gradio's handlers return them


class Board:
    """Makes its components where it is made."""

    def __init__(self, name: str, nothing: str, at_first: str | None = None) -> None:
        """`nothing`: what to show while there is no episode; `at_first`: until that is known."""
        self._nothing = nothing
        with gr.Column(elem_id=f"{name}-board", elem_classes="desk-board", min_width=320):
            self.top = gr.HTML(at_first or nothing, elem_id=f"{name}-summary")
            self.plot = gr.Plot(
                visible=False,
                show_label=False,
                container=False,
                elem_id=f"{name}-curves",
                elem_classes="desk-curves",
            )
            self.legend = gr.HTML(elem_id=f"{name}-legend", visible=False)
            self.ledger = gr.HTML(elem_id=f"{name}-ledger")

    @property
    def components(self) -> list[Any]:
        return [self.top, self.plot, self.legend, self.ledger]

    def show(
        self, story: Story, other: Story | None = None, *, busy: bool = False, redraw: bool = True
    ) -> Shown:
        """All of an episode; without `redraw` the curves stay as they are."""
        told = cluster_cards if story.task.cluster else cards
        drawing = cluster_curves if story.task.cluster else curves
        if other and bool(other.task.cluster) != bool(story.task.cluster):
            other = None  # they have no axis in common
        graded = told.grade(story.status.grade) if story.status.grade else ""
        said = cards.remark(story.remark)
        shown: Shown = {
            self.top: graded + told.summary(story, busy=busy) + said,
            self.ledger: told.ledger(story),
        }
        if redraw:
            drawn = PlotData(type="plotly", plot=json.dumps(drawing.figure(story, other)))
            shown[self.plot] = gr.update(value=drawn, visible=True)
            shown[self.legend] = gr.update(value=told.legend(story, other), visible=True)
        return shown

    def clear(self, instead: str | None = None) -> Shown:
        """No episode: what `instead` says, else what was said at first."""
        return {
            self.top: self._nothing if instead is None else instead,
            self.plot: gr.update(value=None, visible=False),
            self.legend: gr.update(value="", visible=False),
            self.ledger: "",
        }
