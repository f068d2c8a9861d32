"""The tab that replays finished episodes from the records, step by step, and lays two together."""

# gradio leaves most types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ml_trainer_env.server.desk import cards, recorded
from ml_trainer_env.server.desk.board import Board, Shown
from ml_trainer_env.server.desk.recorded import NoRecord, Recorded

NOTHING = cards.empty(
    "No record chosen",
    "Choose a finished episode to see how its agent went about it, call by call; a second one is "
    "laid over it, dashed.",
)
EMPTY = cards.empty(
    "No records yet",
    "Episodes that agents played are recorded, and whole records appear here. This plays one "
    "agent on every task:",
    "make evaluate ARGS='--agents expert --seeds 1'",
)
SECONDS_A_STEP = 1.0


class RecordsTab:
    """Makes its components where it is made."""

    def __init__(self, folder: Path, tab: gr.Tab) -> None:
        self._folder = folder
        with gr.Row(elem_classes="desk-choices"):
            self._chosen = gr.Dropdown(
                choices=[], label="Record", interactive=True, elem_id="records-chosen"
            )
            self._other = gr.Dropdown(
                choices=[], label="Lay over it", interactive=True, elem_id="records-other"
            )
        with gr.Row(elem_classes="desk-inline desk-steps", visible=False) as self._steps:
            self._back = gr.Button("◀ Back", min_width=80, elem_id="records-back")
            self._step = gr.Slider(
                0, 1, value=0, step=1, label="Calls shown", elem_id="records-step", min_width=160
            )
            self._next = gr.Button("Next ▶", min_width=80, elem_id="records-next")
            self._play = gr.Button("Play", min_width=80, elem_id="records-play")
        self._timer = gr.Timer(SECONDS_A_STEP, active=False)
        self._note = gr.HTML(elem_id="records-note")
        self._board = Board("records", NOTHING, cards.looking("Looking for records"))
        self._wire(tab)

    def _wire(self, tab: gr.Tab) -> None:
        where = [self._chosen, self._other, self._step]
        outputs = {self._step, self._steps, self._note, self._play, self._timer}
        quiet: dict[str, Any] = {
            "outputs": outputs | set(self._board.components),
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
        }
        lists = [self._chosen, self._other, self._board.top]
        tab.select(self._list, inputs=where[:2], outputs=lists, api_visibility="private")
        self._chosen.input(self._whole, inputs=where[:2], **quiet)
        self._other.input(self._at, inputs=where, **quiet)
        self._step.input(self._at, inputs=where, **quiet)
        self._back.click(self._before, inputs=where, **quiet)
        self._next.click(self._after, inputs=where, **quiet)
        self._play.click(self._start, inputs=where, **quiet)
        self._timer.tick(self._after, inputs=where, **quiet)

    def _list(self, chosen: str | None, other: str | None) -> tuple[Any, Any, Any]:
        names = recorded.names(self._folder)
        top = gr.skip() if chosen else (NOTHING if names else EMPTY)
        return (
            gr.update(choices=names, value=chosen if chosen in names else None),
            gr.update(choices=names, value=other if other in names else None),
            top,
        )

    def _whole(self, chosen: str | None, other: str | None) -> Shown:
        """A record that was just chosen, at its end."""
        return self._shown(chosen, other, None) | self._still()

    def _at(self, chosen: str | None, other: str | None, step: float) -> Shown:
        return self._shown(chosen, other, int(step)) | self._still()

    def _before(self, chosen: str | None, other: str | None, step: float) -> Shown:
        return self._shown(chosen, other, int(step) - 1) | self._still()

    def _after(self, chosen: str | None, other: str | None, step: float) -> Shown:
        shown = self._shown(chosen, other, int(step) + 1)
        last = self._last(chosen)
        return shown | (self._still() if int(step) + 1 >= last else {})

    def _start(self, chosen: str | None, other: str | None, step: float) -> Shown:
        """From the beginning, when it stands at the end."""
        from_start = int(step) >= self._last(chosen)
        shown = self._shown(chosen, other, 0 if from_start else int(step))
        return shown | {self._timer: gr.Timer(active=True), self._play: "Playing"}

    def _still(self) -> Shown:
        return {self._timer: gr.Timer(active=False), self._play: "Play"}

    def _last(self, chosen: str | None) -> int:
        found = self._open(chosen)
        return len(found.moments) - 1 if isinstance(found, Recorded) else 0

    def _shown(self, chosen: str | None, other: str | None, step: int | None) -> Shown:
        """`chosen` after `step` calls; None: after all of them. `other` is shown whole."""
        story, laid_over = self._open(chosen), self._open(other)
        wrong = next((str(each) for each in (story, laid_over) if isinstance(each, NoRecord)), "")
        note = {self._note: cards.note(wrong, "error")}
        if not isinstance(story, Recorded):
            return note | self._board.clear() | {self._steps: gr.update(visible=False)}
        last = len(story.moments) - 1
        at = last if step is None else min(max(step, 0), last)
        end = laid_over.moments[-1] if isinstance(laid_over, Recorded) else None
        return (
            note
            | self._board.show(story.moments[at], end)
            | {
                self._steps: gr.update(visible=True),
                self._step: gr.update(
                    maximum=max(last, 1), value=at, label=f"{story.title}: call {at} of {last}"
                ),
            }
        )

    def _open(self, name: str | None) -> Recorded | NoRecord | None:
        if not name:
            return None
        try:
            return recorded.open_record(self._folder, name)
        except NoRecord as error:
            return error
