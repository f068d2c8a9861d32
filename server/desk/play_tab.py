"""The tab on which a visitor plays: the controls, the board, and what each button does.

A mistake is answered beside the form that it was made in, and the form keeps what was typed.
"""

# gradio leaves most types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import gradio as gr

from ml_trainer_env.models import DEFAULT_TASK_ID, CurrentConfig, TrainingConfig
from ml_trainer_env.server.desk import cards, cluster_forms, form
from ml_trainer_env.server.desk.board import Board, Shown
from ml_trainer_env.server.desk.choices import TASK_CHOICES, if_family, surprise
from ml_trainer_env.server.desk.cluster_forms import ClusterForms
from ml_trainer_env.server.desk.seats import Seat, Seats
from ml_trainer_env.server.session.places import NoPlace
from ml_trainer_env.server.session.reset_options import DEFAULT_SEED
from ml_trainer_env.server.validation import ActionError
from ml_trainer_env.task_ids import FAMILIES, SPLITS

log = logging.getLogger("uvicorn.error")

NOTHING = cards.empty(
    "No episode yet",
    "Choose a task and a seed, and start. The same seed begins with the same weights and the same "
    "shuffles, so what differs is what you do. Nothing is simulated: every point of the curves is "
    "an epoch of real training on this server.",
)
STARTING = "Starting: the first episode after the server's start waits until the data is loaded."

TAKEN_OVER = "Started, with a run that somebody else has trained; its configuration is below."
BEGUN = "Started. Next: apply a configuration."
HANDED_OVER = "Started, and well configured: train a window or a few, and watch."
TRAINING = "Training. Stop ends it when the present epoch, or window, is over."

SETS = {  # arguments of other names than the options of the configuration that they set
    "new_lr": "learning_rate",
    "enabled": "augmentation",
    "strength": "augmentation_strength",
}

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
        self._notes: dict[str, gr.HTML] = {}
        # Gradio deletes a state that has not been set for so long, and its callback frees the seat.
        self._held = gr.State(
            None, time_to_live=session_timeout or None, delete_callback=seats.leave
        )
        with gr.Row(elem_classes="desk-columns"):
            with gr.Column(elem_classes="desk-controls", min_width=320):
                self._begin_card()
                self._configure_card()
                self._cluster = ClusterForms(self._button, self._note, "cluster_training")
                self._adjust_card()
            with gr.Column(elem_classes="desk-main", min_width=320):
                self._train_card()
                self._board = Board("desk", NOTHING)
        self._wire()

    # The cards -------------------------------------------------------------------------------

    def _begin_card(self) -> None:
        with self._card(1, "Episode"):
            self._task = gr.Radio(
                choices=TASK_CHOICES,
                value=DEFAULT_TASK_ID,
                label="Task",
                elem_id="desk-task",
                elem_classes="desk-rows",
            )
            with gr.Row(elem_classes="desk-inline", visible=False) as self._instance:
                self._split = gr.Dropdown(
                    list(SPLITS),
                    value=SPLITS[-1],
                    label="Split",
                    min_width=90,
                    elem_id="desk-split",
                )
                self._index = gr.Number(0, label="Index", min_width=90, elem_id="desk-index")
                self._surprise = gr.Button(
                    "Surprise me", size="sm", min_width=90, elem_id="desk-surprise-button"
                )
            with gr.Row(elem_classes="desk-inline"):
                self._seed = gr.Number(
                    DEFAULT_SEED, label="Seed", min_width=90, elem_id="desk-seed"
                )
                self._start = self._button("Start episode", "start", primary=True)
            self._note("begin")

    def _configure_card(self) -> None:
        self._own = self._card(2, "Configuration", "Never resets weights, history or budget.")
        with self._own:
            with gr.Column(elem_classes="desk-form"):
                self._config = form.fields("configure_training")
            self._apply = self._button("Apply configuration", "apply", primary=True)
            self._note("configure_training")

    def _adjust_card(self) -> None:
        with self._card(None, "Change one thing"):
            self._rate = form.fields("adjust_learning_rate")
            self._rate[0].widget.value = TrainingConfig().learning_rate  # a rate to start from
            self._adjust = self._button("Adjust learning rate", "adjust")
            self._note("adjust_learning_rate")
            self._augmentation = form.fields("toggle_augmentation")
            self._toggle = self._button("Set augmentation", "toggle")
            self._note("toggle_augmentation")

    def _train_card(self) -> None:
        """Beside the curves: on a phone too, whoever trains sees them."""
        with self._card(3, "Train, and submit when it is good"):
            with gr.Row(elem_classes="desk-inline desk-actions"):
                self._run = form.fields("run_epochs")
                self._train = self._button("Train", "train", primary=True)
                self._stop = self._button("Stop", "stop")
                self._status = self._button("Status", "status")
                self._submit = self._button("Submit model", "submit")
            self._note("action")

    def _card(self, number: int | None, title: str, text: str = "") -> gr.Column:
        card = gr.Column(elem_classes="desk-card")
        with card:
            gr.HTML(cards.step(number, title, text))
        return card

    def _button(self, text: str, name: str, *, primary: bool = False) -> gr.Button:
        return gr.Button(
            text,
            variant="primary" if primary else "secondary",
            interactive=name == "start",
            min_width=90,
            elem_id=f"desk-{name}-button",
        )

    def _note(self, name: str) -> None:
        self._notes[name] = gr.HTML(elem_id=f"desk-{name.replace('_', '-')}-note")

    # What the buttons do ---------------------------------------------------------------------

    def _wire(self) -> None:
        fields = [*self._config, *self._augmentation]
        buttons = [self._apply, self._train, self._stop, self._adjust, self._toggle]
        self._buttons = [*buttons, self._status, self._submit, *self._cluster.buttons.values()]
        everything: Any = {
            self._held,
            self._start,
            *self._buttons,
            *self._notes.values(),
            *self._board.components,
            *(field.widget for field in (*fields, *self._run)),
            *(self._own, *self._cluster.components),
        }

        def on(button: gr.Button, do: Callable[..., Any], inputs: Sequence[Any] = ()) -> None:
            button.click(do, inputs=[*inputs], outputs=everything, **QUIET)

        def widgets(of: Sequence[form.Field]) -> list[Any]:
            return [field.widget for field in of]

        on(self._start, self._do_begin, [self._task, self._split, self._index, self._seed])
        self._task.change(if_family, self._task, self._instance, **QUIET)
        self._surprise.click(surprise, [self._task, self._split], self._index, **QUIET)
        on(self._apply, self._do_configure, widgets(self._config))
        on(self._train, self._do_train, widgets(self._run))
        on(self._adjust, self._do_adjust, widgets(self._rate))
        on(self._toggle, self._do_toggle, widgets(self._augmentation))
        for tool, button in self._cluster.buttons.items():
            on(button, self._operate(tool), self._cluster.widgets(tool))
        on(self._status, self._do_status)
        on(self._submit, self._do_submit)
        self._stop.click(self._do_stop, outputs=[self._stop], **QUIET)

    async def _do_begin(
        self, request: gr.Request, task_id: str, split: Any, index: Any, seed: Any
    ) -> AsyncIterator[Shown]:
        visitor = _visitor(request)
        yield self._said("begin", cards.note(STARTING, "busy")) | {
            self._start: gr.update(interactive=False)
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
                self._said("begin", cards.note(str(refusal), "full"))
                | self._board.clear(cards.full(str(refusal)))
                | self._enabled(None)
            )

    async def _do_configure(self, request: gr.Request, *values: Any) -> Shown:
        async def configure() -> str:
            seat = self._seats.require(_visitor(request))
            now = seat.story.status.current_config if seat.story else None
            known = now.model_dump() if now else {}
            wanted = form.arguments(self._config, values)
            changes = form.changed(wanted, self._config, known)
            return (await seat.call("configure_training", changes)).message

        return await self._answered("configure_training", _visitor(request), configure)

    async def _do_train(self, request: gr.Request, *values: Any) -> AsyncIterator[Shown]:
        visitor = _visitor(request)
        try:
            seat = self._seats.require(visitor)
            yield self._said("action", cards.note(TRAINING, "busy"))
            async for _ in seat.train(form.arguments(self._run, values)):
                yield self._shown(seat) | {self._held: visitor}
        except ActionError as mistake:
            yield self._wrong("action", visitor, mistake)
        except Exception as error:
            yield self._failed("action", visitor, error)
        else:
            yield await self._answered("action", visitor, _told_of_last(seat))

    async def _do_adjust(self, request: gr.Request, *values: Any) -> Shown:
        given = form.arguments(self._rate, values)
        return await self._call("adjust_learning_rate", given, request)

    async def _do_toggle(self, request: gr.Request, *values: Any) -> Shown:
        given = form.arguments(self._augmentation, values)
        return await self._call("toggle_augmentation", given, request)

    def _operate(self, tool: str) -> Callable[..., Awaitable[Shown]]:
        """What a cluster's form does."""
        note = "cluster_training" if tool == cluster_forms.CONFIGURE else cluster_forms.NOTE

        async def do(request: gr.Request, *values: Any) -> Shown:
            seat = self._seats.find(_visitor(request))
            now = seat.story.status.cluster if seat and seat.story else None
            given = self._cluster.given(tool, values, now)
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
            self._said(note, told)
            | self._shown(seat)
            | self._synchronous(note, seat)
            | {
                self._held: visitor  # setting it tells that the visitor is not silent
            }
        )

    def _wrong(self, note: str, visitor: str, mistake: ActionError) -> Shown:
        said = self._said(note, cards.note(str(mistake), "error"))
        seat = self._seats.find(visitor)
        if seat is None or seat.environment.episode is None:
            return said | self._board.clear() | self._enabled(None)
        return said | self._enabled(seat)

    def _failed(self, note: str, visitor: str, error: Exception) -> Shown:
        """Our mistake: the log has it, the page does not."""
        log.error("the desk failed in %s", note, exc_info=error)
        text = "The server failed at this, and nothing has changed. Its log says why."
        seat = self._seats.find(visitor)
        return self._said(note, cards.note(text, "error")) | self._enabled(seat)

    def _said(self, note: str, html: str) -> Shown:
        """One message; whatever was said before beside other forms goes."""
        return {shown: html if name == note else "" for name, shown in self._notes.items()}

    def _shown(self, seat: Seat) -> Shown:
        story = seat.story
        board = self._board.show(story, busy=seat.training) if story else self._board.clear()
        return board | self._enabled(seat)

    def _enabled(self, seat: Seat | None) -> Shown:
        """Only what can be done now can be pressed."""
        episode = seat.environment.episode if seat else None
        training = bool(seat and seat.training)
        playing = episode is not None and not episode.done and not training
        can = dict.fromkeys(self._buttons, playing)
        can |= {self._start: not training, self._stop: training, self._status: episode is not None}
        shown: Shown = {button: gr.update(interactive=on) for button, on in can.items()}
        shown |= self._kind(bool(episode and episode.task.cluster))
        return shown | {self._stop: gr.update(interactive=training, value="Stop")}

    def _kind(self, cluster: bool) -> Shown:
        """The forms that the episode has."""
        epochs = gr.update(label="Windows of 25 steps" if cluster else form.label_of("num_epochs"))
        own = {self._own: gr.update(visible=not cluster), self._run[0].widget: epochs}
        return own | self._cluster.visible(on=cluster)

    def _synchronous(self, tool: str, seat: Seat) -> Shown:
        """What `tool` has just set shows in the other forms too, so that using them undoes nothing.

        The rest of the forms stays as it was typed.
        """
        played, story = seat.environment.played, seat.story
        config = story.status.current_config if story else None
        if story and story.status.cluster and story.task.cluster:
            last = played[-1].tool if played else "begin"
            ranks = story.task.cluster.world.ranks
            return self._cluster.show(story.status.cluster, ranks, tool=last)
        if tool == "begin":
            return self._taken_over(seat, config)
        if config is None or not played or played[-1].tool != tool:
            return {}
        now, given = config.model_dump(), {_option(name) for name in played[-1].arguments}
        others = {"configure_training": self._config, "toggle_augmentation": self._augmentation}
        return {
            field.widget: now[_option(field.name)]
            for other, fields in others.items()
            for field in fields
            if other != tool and _option(field.name) in given
        }

    def _taken_over(self, seat: Seat, config: CurrentConfig | None) -> Shown:
        """The configuration of a run that is taken over; afterwards the defaults again."""
        was_anothers, seat.form_is_anothers = seat.form_is_anothers, config is not None
        if config is None and not was_anothers:
            return {}  # what was typed stays
        known = (config or TrainingConfig()).model_dump()
        fields = [*self._config, *self._augmentation]
        return {field.widget: known[_option(field.name)] for field in fields}


def _option(argument: str) -> str:
    """The option of the configuration that an argument of any tool sets."""
    return SETS.get(argument, argument)


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
