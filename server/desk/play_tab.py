"""The tab on which a visitor plays: what each button does, and what is answered.

A mistake is answered beside the form that it was made in, and the form keeps what was typed.
"""

# gradio leaves most types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import gradio as gr

from ml_trainer_env.server.desk import cards, cluster_forms, form
from ml_trainer_env.server.desk.board import Board, Shown
from ml_trainer_env.server.desk.choices import if_family, surprise
from ml_trainer_env.server.desk.controls import Controls
from ml_trainer_env.server.desk.seats import Seat, Seats
from ml_trainer_env.server.session.places import NoPlace
from ml_trainer_env.server.validation import ActionError
from ml_trainer_env.task_ids import FAMILIES

log = logging.getLogger("uvicorn.error")

NOTHING = cards.empty(
    "No episode yet",
    "Choose a task and a seed, and start. The same seed begins with the same weights and the same "
    "shuffles, so what differs is what you do. Nothing is simulated: every point of the curves is "
    "real training on this server.",
)
STARTING = "Starting: the first episode after the server's start waits until the data is loaded."

TAKEN_OVER = "Started, with a run that somebody else has trained; its configuration is below."
BEGUN = "Started. Next: apply a configuration."
HANDED_OVER = "Started, and well configured: train a window or a few, and watch."
TRAINING = "Training. Stop ends it when the present epoch, or window, is over."

QUIET: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_limit": None,  # Gradio's own default would let one visitor wait for another
}


class PlayTab:
    """Makes its components where it is made."""

    def __init__(self, seats: Seats, session_timeout: float) -> None:
        """`session_timeout`: seconds without an action until a seat is given up; 0: never."""
        self._seats = seats
        # Gradio deletes a state that has not been set for so long, and its callback frees the seat.
        self._held = gr.State(
            None, time_to_live=session_timeout or None, delete_callback=seats.leave
        )
        with gr.Row(elem_classes="desk-columns"):
            with gr.Column(elem_classes="desk-controls", min_width=320):
                self._controls = Controls()
            with gr.Column(elem_classes="desk-main", min_width=320):
                self._controls.train_card()
                self._board = Board("desk", NOTHING)
        self._wire()

    # What the buttons do ---------------------------------------------------------------------

    def _wire(self) -> None:
        shown = self._controls
        everything: Any = {self._held, *shown.components, *self._board.components}

        def on(button: gr.Button, do: Callable[..., Any], inputs: Sequence[Any] = ()) -> None:
            button.click(do, inputs=[*inputs], outputs=everything, **QUIET)

        def widgets(of: Sequence[form.Field]) -> list[Any]:
            return [field.widget for field in of]

        on(shown.start, self._do_begin, [shown.task, shown.split, shown.index, shown.seed])
        shown.task.change(if_family, shown.task, shown.instance, **QUIET)
        shown.surprise.click(surprise, [shown.task, shown.split], shown.index, **QUIET)
        on(shown.apply, self._do_configure, widgets(shown.config))
        on(shown.train, self._do_train, widgets(shown.run))
        on(shown.adjust, self._do_adjust, widgets(shown.rate))
        on(shown.toggle, self._do_toggle, widgets(shown.augmentation))
        for tool, button in shown.cluster.buttons.items():
            on(button, self._operate(tool), shown.cluster.widgets(tool))
        on(shown.status, self._do_status)
        on(shown.submit, self._do_submit)
        shown.stop.click(self._do_stop, outputs=[shown.stop], **QUIET)

    async def _do_begin(
        self, request: gr.Request, task_id: str, split: Any, index: Any, seed: Any
    ) -> AsyncIterator[Shown]:
        visitor = _visitor(request)
        yield self._controls.said("begin", cards.note(STARTING, "busy")) | {
            self._controls.start: gr.update(interactive=False)
        }
        seat = self._seats.seat(visitor)

        async def begin() -> str:
            place = {"split": split, "index": index} if task_id in FAMILIES else {}
            await seat.begin(task_id=task_id, seed=seed, **place)
            if seat.story and seat.story.task.cluster:
                return HANDED_OVER
            taken_over = seat.story and seat.story.status.current_config
            return TAKEN_OVER if taken_over else BEGUN

        try:
            yield await self._answered("begin", visitor, begin)
        except NoPlace as refusal:
            yield (
                self._controls.said("begin", cards.note(str(refusal), "full"))
                | self._board.clear(cards.full(str(refusal)))
                | self._controls.enabled(None)
            )

    async def _do_configure(self, request: gr.Request, *values: Any) -> Shown:
        async def configure() -> str:
            seat = self._seats.require(_visitor(request))
            now = seat.story.status.current_config if seat.story else None
            known = now.model_dump() if now else {}
            wanted = form.arguments(self._controls.config, values)
            changes = form.changed(wanted, self._controls.config, known)
            return (await seat.call("configure_training", changes)).message

        return await self._answered("configure_training", _visitor(request), configure)

    async def _do_train(self, request: gr.Request, *values: Any) -> AsyncIterator[Shown]:
        visitor = _visitor(request)
        try:
            seat = self._seats.require(visitor)
            yield self._controls.said("action", cards.note(TRAINING, "busy"))
            async for _ in seat.train(form.arguments(self._controls.run, values)):
                yield self._shown(seat) | {self._held: visitor}
        except ActionError as mistake:
            yield self._wrong("action", visitor, mistake)
        except Exception as error:
            yield self._failed("action", visitor, error)
        else:
            yield await self._answered("action", visitor, _told_of_last(seat))

    async def _do_adjust(self, request: gr.Request, *values: Any) -> Shown:
        given = form.arguments(self._controls.rate, values)
        return await self._call("adjust_learning_rate", given, request)

    async def _do_toggle(self, request: gr.Request, *values: Any) -> Shown:
        given = form.arguments(self._controls.augmentation, values)
        return await self._call("toggle_augmentation", given, request)

    def _operate(self, tool: str) -> Callable[..., Awaitable[Shown]]:
        """What a cluster's form does."""
        note = "cluster_training" if tool == cluster_forms.CONFIGURE else tool

        async def do(request: gr.Request, *values: Any) -> Shown:
            seat = self._seats.find(_visitor(request))
            now = seat.story.status.cluster if seat and seat.story else None
            given = self._controls.cluster.given(tool, values, now)
            return await self._call(tool, given, request, note)

        return do

    async def _do_status(self, request: gr.Request) -> Shown:
        return await self._call("get_training_status", {}, request, note="action")

    async def _do_submit(self, request: gr.Request) -> Shown:
        return await self._call("submit_model", {}, request, note="action")

    async def _do_stop(self, request: gr.Request) -> Any:
        seat = self._seats.find(_visitor(request))
        if seat:
            seat.stop()
        return gr.update(value="Stopping", interactive=False)

    # What they answer ------------------------------------------------------------------------

    async def _call(
        self, tool: str, given: dict[str, Any], request: gr.Request, note: str | None = None
    ) -> Shown:
        async def call() -> str:
            seat = self._seats.require(_visitor(request))
            return (await seat.call(tool, given)).message

        return await self._answered(note or tool, _visitor(request), call)

    async def _answered(self, note: str, visitor: str, do: Callable[[], Awaitable[str]]) -> Shown:
        """Where the episode stands after `do`, which says what it did. Raises `NoPlace`."""
        try:
            told = cards.note(_sentence(await do()), "good")
        except NoPlace:
            raise
        except ActionError as mistake:
            return self._wrong(note, visitor, mistake)
        except Exception as error:
            return self._failed(note, visitor, error)
        seat = self._seats.require(visitor)
        return (
            self._controls.said(note, told)
            | self._shown(seat)
            | self._controls.standing(note, seat)
            | {
                self._held: visitor  # setting it tells that the visitor is not silent
            }
        )

    def _wrong(self, note: str, visitor: str, mistake: ActionError) -> Shown:
        said = self._controls.said(note, cards.note(str(mistake), "error"))
        seat = self._seats.find(visitor)
        if seat is None or seat.environment.episode is None:
            return said | self._board.clear() | self._controls.enabled(None)
        return said | self._controls.enabled(seat)

    def _failed(self, note: str, visitor: str, error: Exception) -> Shown:
        """Our mistake: the log has it, the page does not."""
        log.error("the desk failed in %s", note, exc_info=error)
        text = "The server failed at this, and nothing has changed. Its log says why."
        seat = self._seats.find(visitor)
        return self._controls.said(note, cards.note(text, "error")) | self._controls.enabled(seat)

    def _shown(self, seat: Seat) -> Shown:
        story = seat.story
        board = self._board.show(story, busy=seat.training) if story else self._board.clear()
        return board | self._controls.enabled(seat)


def _told_of_last(seat: Seat) -> Callable[[], Awaitable[str]]:
    """What the call that has just been answered said."""

    async def told() -> str:
        last = seat.environment.played[-1].status
        return last.message if last else ""

    return told


def _visitor(request: gr.Request) -> str:
    if not request.session_hash:
        raise ActionError("this page has no session: reload it")
    return request.session_hash


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
