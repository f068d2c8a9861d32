"""The controls of the tab on which a visitor plays: cards of forms, buttons and messages.

What kind of episode it is decides which forms there are and what they say; where it stands decides
what can be pressed, and what the forms show.
"""

# gradio leaves most types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import gradio as gr

from ml_trainer_env.models import DEFAULT_TASK_ID, CurrentConfig, TrainingConfig
from ml_trainer_env.server.desk import cards, form
from ml_trainer_env.server.desk.board import Shown
from ml_trainer_env.server.desk.choices import TASK_CHOICES
from ml_trainer_env.server.desk.cluster_forms import ClusterForms
from ml_trainer_env.server.desk.seats import Seat
from ml_trainer_env.server.episode.tools import CLUSTER_TOOLS, TOOLS
from ml_trainer_env.server.session.reset_options import DEFAULT_SEED
from ml_trainer_env.task_ids import SPLITS

SETS = {  # arguments of other names than the options of the configuration that they set
    "new_lr": "learning_rate",
    "enabled": "augmentation",
    "strength": "augmentation_strength",
}
GOAL, GOAL_OF_CLUSTER = "Train, and submit when it is good", "Train on, and submit at the deadline"
WINDOWS = "Windows of 25 steps"


class Controls:
    """Makes its components where it is made, but those of training: `train_card` does."""

    def __init__(self) -> None:
        self._notes: dict[str, gr.HTML] = {}
        self._begin_card()
        self._configure_card()
        self.cluster = ClusterForms(self._button, self._note, "cluster_training")
        self._adjust_card()

    # The cards -------------------------------------------------------------------------------

    def _begin_card(self) -> None:
        with self._card(1, "Episode"):
            self.task = gr.Radio(
                choices=TASK_CHOICES,
                value=DEFAULT_TASK_ID,
                label="Task",
                elem_id="desk-task",
                elem_classes="desk-rows",
            )
            with gr.Row(elem_classes="desk-inline", visible=False) as self.instance:
                self.split = gr.Dropdown(
                    list(SPLITS),
                    value=SPLITS[-1],
                    label="Split",
                    min_width=90,
                    elem_id="desk-split",
                )
                self.index = gr.Number(0, label="Index", min_width=90, elem_id="desk-index")
                self.surprise = gr.Button(
                    "Surprise me", size="sm", min_width=90, elem_id="desk-surprise-button"
                )
            with gr.Row(elem_classes="desk-inline"):
                self.seed = gr.Number(DEFAULT_SEED, label="Seed", min_width=90, elem_id="desk-seed")
                self.start = self._button("Start episode", "start", primary=True)
            self._note("begin")

    def _configure_card(self) -> None:
        self._own = self._card(2, "Configuration", "Never resets weights, history or budget.")
        with self._own:
            with gr.Column(elem_classes="desk-form"):
                self.config = form.fields("configure_training")
            self.apply = self._button("Apply configuration", "apply", primary=True)
            self._note("configure_training")

    def _adjust_card(self) -> None:
        with self._card(None, "Change one thing"):
            self.rate = form.fields("adjust_learning_rate")
            self.rate[0].widget.value = TrainingConfig().learning_rate  # a rate to start from
            self.adjust = self._button("Adjust learning rate", "adjust")
            self._note("adjust_learning_rate")
            self.augmentation = form.fields("toggle_augmentation")
            self.toggle = self._button("Set augmentation", "toggle")
            self._note("toggle_augmentation")

    def train_card(self) -> None:
        """Beside the curves: on a phone too, whoever trains sees them."""
        with gr.Column(elem_classes="desk-card"):
            self._goal = gr.HTML(cards.step(3, GOAL))
            with gr.Row(elem_classes="desk-inline desk-actions"):
                self.run = form.fields("run_epochs")
                self.train = self._button("Train", "train", primary=True)
                self.stop = self._button("Stop", "stop")
                self.status = self._button("Status", "status")
                self.submit = self._button("Submit model", "submit")
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

    # What they show --------------------------------------------------------------------------

    @property
    def components(self) -> list[Any]:
        """All that an answer may change."""
        fields = (*self.config, *self.rate, *self.augmentation, *self.run)
        widgets = [field.widget for field in fields]
        cards = [self._own, self._goal, *self.cluster.components]
        return [self.start, *self._buttons, *self._notes.values(), *widgets, *cards]

    @property
    def _buttons(self) -> list[gr.Button]:
        """Those of an episode."""
        own = [self.apply, self.train, self.stop, self.adjust, self.toggle]
        return [*own, self.status, self.submit, *self.cluster.buttons.values()]

    def said(self, note: str, html: str) -> Shown:
        """One message; whatever was said before beside other forms goes."""
        return {shown: html if name == note else "" for name, shown in self._notes.items()}

    def enabled(self, seat: Seat | None) -> Shown:
        """Only what can be done now can be pressed."""
        episode = seat.environment.episode if seat else None
        training = bool(seat and seat.training)
        playing = episode is not None and not episode.done and not training
        can = dict.fromkeys(self._buttons, playing)
        can |= {self.start: not training, self.stop: training, self.status: episode is not None}
        shown: Shown = {button: gr.update(interactive=on) for button, on in can.items()}
        shown |= self._of_kind(cluster=bool(episode and episode.task.cluster))
        return shown | {self.stop: gr.update(interactive=training, value="Stop")}

    def _of_kind(self, *, cluster: bool) -> Shown:
        """The forms that the episode has, in its words."""
        label = WINDOWS if cluster else form.label_of("num_epochs")
        return {
            self._own: gr.update(visible=not cluster),
            self._goal: cards.step(3, GOAL_OF_CLUSTER if cluster else GOAL),
            self.run[0].widget: gr.update(label=label),
            **self._rate_of_kind(cluster=cluster),
        } | self.cluster.visible(on=cluster)

    def _rate_of_kind(self, *, cluster: bool, **more: Any) -> Shown:
        """A cluster's rate is that of its next step, a network's that of its next epoch."""
        [rate] = self.rate
        schema = (CLUSTER_TOOLS if cluster else TOOLS)["adjust_learning_rate"].input_schema
        return {rate.widget: gr.update(info=form.help_of(schema["properties"][rate.name]), **more)}

    def standing(self, tool: str, seat: Seat) -> Shown:
        """What `tool` has just set shows in the other forms too, so that using them undoes nothing.

        The rest of the forms stays as it was typed.
        """
        played, story = seat.environment.played, seat.story
        config = story.status.current_config if story else None
        if story and story.status.cluster and story.task.cluster:
            last = played[-1].tool if played else "begin"
            ranks = story.task.cluster.world.ranks
            shown = self.cluster.show(story.status.cluster, ranks, tool=last)
            if tool == "begin":
                seat.form_is_anothers = True
                shown |= self._rate_of_kind(
                    cluster=True, value=None
                )  # none suits all of a schedule
            return shown
        if tool == "begin":
            return self._taken_over(seat, config)
        if config is None or not played or played[-1].tool != tool:
            return {}
        now, given = config.model_dump(), {_option(name) for name in played[-1].arguments}
        others = {"configure_training": self.config, "toggle_augmentation": self.augmentation}
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
        fields = [*self.config, *self.augmentation]
        shown: Shown = {field.widget: known[_option(field.name)] for field in fields}
        return shown | self._rate_of_kind(cluster=False, value=known["learning_rate"])


def _option(argument: str) -> str:
    """The option of the configuration that an argument of any tool sets."""
    return SETS.get(argument, argument)
