"""The tab that shows the episodes that are open on this server, live and read-only."""

# gradio leaves most types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ml_trainer_env.server.desk import cards, words
from ml_trainer_env.server.desk.board import Board, Shown
from ml_trainer_env.server.desk.seats import Seats
from ml_trainer_env.server.desk.story import Story, live
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment

EVERY = 1.0  # seconds between two looks

CONNECT = """from ml_trainer_env import MLTrainerEnv

with MLTrainerEnv(base_url="http://localhost:8000") as env:
    env.reset(task_id="easy_mnist")
    env.call_tool("configure_training", learning_rate=0.001)
    env.call_tool("run_epochs", num_epochs=10)"""

NOTHING = cards.empty(
    "Nobody is playing",
    "Every episode that is open on this server appears here by itself. Start one on the first tab, "
    "or connect an agent:",
    CONNECT,
)

Guests = Callable[[], Sequence[MLTrainerEnvironment]]


class WatchTab:
    """Makes its components where it is made."""

    def __init__(
        self, guests: Guests, seats: Seats, tab: gr.Tab, leaving: Sequence[gr.Tab]
    ) -> None:
        """`guests()` has every open environment. It looks only while `tab` is selected."""
        self._guests = guests
        self._seats = seats
        timer = gr.Timer(EVERY, active=False)
        self._seen = gr.State(None)  # what the curves show: nothing is sent twice
        self._choice = gr.Radio(
            choices=[],
            label="Open episodes",
            info="Live and read-only; the longest open first.",
            visible=False,
            elem_id="watch-episodes",
            elem_classes="desk-rows",
        )
        self._board = Board("watch", NOTHING, cards.looking("Looking for open episodes"))
        outputs = {self._choice, self._seen, *self._board.components}
        quiet: dict[str, Any] = {
            "inputs": [self._choice, self._seen],
            "outputs": outputs,
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
        }
        tab.select(self._look, **quiet)
        timer.tick(self._look, **quiet)
        self._choice.input(self._look, **quiet)
        tab.select(lambda: gr.Timer(active=True), outputs=timer, api_visibility="private")
        for other in leaving:
            other.select(lambda: gr.Timer(active=False), outputs=timer, api_visibility="private")

    def _look(self, request: gr.Request, chosen: str | None, seen: Any) -> Shown:
        stories = self._stories()
        seat = self._seats.find(request.session_hash or "")
        own = seat.environment.watch_id if seat else None
        if not stories:
            nobody = gr.update(choices=[], value=None, visible=False)
            return self._board.clear() | {self._choice: nobody, self._seen: None}
        labels = [(_label(key, story, yours=key == own), key) for key, story in stories.items()]
        if chosen not in stories:
            chosen = next((key for key in stories if key != own), own)
        assert chosen is not None
        story = stories[chosen]
        mark = (chosen, len(story.points), len(story.played), story.status.done)
        return self._board.show(story, redraw=mark != seen) | {
            self._choice: gr.update(choices=labels, value=chosen, visible=True),
            self._seen: mark,
        }

    def _stories(self) -> dict[str, Story]:
        """By what names the episode to who watches: clients choose ids, for themselves."""
        stories: dict[str, Story] = {}
        for environment in self._guests():
            story, key = live(environment), environment.watch_id
            if story and key:
                stories[key] = story
        return stories


def _label(key: str, story: Story, *, yours: bool) -> str:
    status = story.status
    if status.grade:
        where = f"graded {status.grade.score:.3f}"
    elif status.cluster:
        where = f"{status.cluster.seconds:.0f} of {status.cluster.deadline:.0f} s"
    else:
        mark, _ = words.SIGNALS[status.convergence_signal]
        word = status.convergence_signal.replace("_", " ")
        where = f"epoch {status.current_epoch} of {status.max_epochs} · {mark} {word}"
    who = "yours" if yours else key
    return f"{who} · {status.task_id}, seed {story.seed} · {where}"
