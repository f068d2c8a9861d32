"""What a cluster has in the place of a network's configuration: its own, and four tools more.

Shown only while a cluster is played. Lists of ranks and of data shards show how things stand, so
what is sent is all that is to be out.
"""

# gradio leaves most types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from ml_trainer_env.cluster_status import ClusterStatus
from ml_trainer_env.events import MICRO_SHARDS
from ml_trainer_env.server.desk import cards, form
from ml_trainer_env.server.desk.board import Shown
from ml_trainer_env.server.desk.form import Field
from ml_trainer_env.server.episode.tools import CLUSTER_TOOLS

CONFIGURE = "configure_training"
BUTTONS = {
    "run_diagnostic": "Diagnose",
    "restore_checkpoint": "Restore",
    "configure_ranks": "Restart with these ranks",
    "configure_data": "Restart with these data",
}
TITLES = {
    "run_diagnostic": "Look closer",
    "restore_checkpoint": "Go back",
    "configure_ranks": "Ranks",
    "configure_data": "Data",
}


class ClusterForms:
    """Makes its components where it is made."""

    def __init__(
        self, button: Callable[..., gr.Button], note: Callable[[str], None], note_of_config: str
    ) -> None:
        self.fields: dict[str, tuple[Field, ...]] = {}
        self.buttons: dict[str, gr.Button] = {}
        self._cards: list[gr.Column] = []
        with self._card(2, "Configuration", "It trains well as it is handed over."):
            with gr.Column(elem_classes="desk-form"):
                self._made(CONFIGURE)
            self.buttons[CONFIGURE] = button("Apply configuration", "cluster-apply", primary=True)
            note(note_of_config)
        with self._card(None, "Operate", "Each takes seconds of the clock."):
            for tool, label in BUTTONS.items():
                with gr.Accordion(TITLES[tool], open=tool == "run_diagnostic"):
                    gr.HTML(cards.step(None, "", CLUSTER_TOOLS[tool].description))
                    self._made(tool)
                    self.buttons[tool] = button(label, tool.replace("_", "-"))
                    note(tool)

    def _card(self, number: int | None, title: str, text: str) -> gr.Column:
        card = gr.Column(elem_classes="desk-card", visible=False)
        self._cards.append(card)
        with card:
            gr.HTML(cards.step(number, title, text))
        return card

    def _made(self, tool: str) -> None:
        self.fields[tool] = form.fields(tool, CLUSTER_TOOLS, "cluster-")

    @property
    def components(self) -> list[Any]:
        widgets = [field.widget for fields in self.fields.values() for field in fields]
        return [*self._cards, *widgets, *self.buttons.values()]

    def widgets(self, tool: str) -> list[Any]:
        return [field.widget for field in self.fields[tool]]

    def given(self, tool: str, values: Sequence[Any], now: ClusterStatus | None) -> dict[str, Any]:
        """The arguments of a call: of the configuration what differs from what is in force."""
        wanted = form.arguments(self.fields[tool], values)
        if tool == CONFIGURE:
            known = now.config.model_dump() if now else {}
            return form.changed(wanted, self.fields[tool], known)
        return {name: value for name, value in wanted.items() if value is not None}

    def visible(self, *, on: bool) -> Shown:
        return {card: gr.update(visible=on) for card in self._cards}

    def show(self, now: ClusterStatus, ranks: int, *, tool: str) -> Shown:
        """How things stand, after this tool; what was typed for others stays."""
        shown: Shown = {}
        if tool in ("begin", CONFIGURE, "adjust_learning_rate"):
            config: Mapping[str, Any] = now.config.model_dump()
            shown |= {each.widget: config[each.name] for each in self.fields[CONFIGURE]}
        steps = [*now.checkpoints]
        shown[self._widget("restore_checkpoint", "step")] = gr.update(
            choices=steps, value=steps[-1] if steps else None
        )
        if tool in ("begin", "configure_ranks"):
            every = [(str(rank), rank) for rank in range(ranks)]
            for name, value in (("exclude", [*now.excluded]), ("use_spare", [])):
                update = gr.update(choices=every, value=value)
                shown[self._widget("configure_ranks", name)] = update
            equal = ", ".join([str(MICRO_SHARDS // ranks)] * ranks)
            shares = self._widget("configure_ranks", "shares")
            shown[shares] = gr.update(value="", placeholder=equal)
        if tool in ("begin", "configure_data"):
            out = self._widget("configure_data", "quarantine_shards")
            shown |= {out: [*now.quarantined], self._widget("configure_data", "reshuffle"): False}
        return shown

    def _widget(self, tool: str, name: str) -> Any:
        return next(field.widget for field in self.fields[tool] if field.name == name)
