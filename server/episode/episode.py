"""One episode: its actions, the budget, the end. Knows no protocol and no engine.

Guarantees:
- An action happens wholly or not at all. One that raises has changed nothing and cost nothing.
- One action at a time: a second one is refused at once, while `get_training_status` always answers,
  with the last finished epoch of an action in progress.
- At most as many counted actions as the task allows; the last one submits, unless it did so itself.
  The final score is added to exactly one reward.
- Nothing here draws a random number or sets a global: training is asked of a runner, run by run.

What the actions mean is for the kinds of episodes to say: of one network, of a cluster.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from ml_trainer_env.models import EpochRecord, EpochReport, Grade, RewardTerms, TrainingStatus
from ml_trainer_env.server.episode.situation import Situation
from ml_trainer_env.server.runs import Plan, Run
from ml_trainer_env.server.runtime.asking import Asker, Bell, bell_of, never
from ml_trainer_env.server.runtime.runner import Runner
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.server.validation import ActionError


class Episode(ABC):
    """An episode of `task`, begun at `start`, trained by `runner`. Any thread may call it."""

    UNIT = "epoch"  # of what `run_epochs` trains
    GRADED = "the best model"

    def __init__(
        self,
        task: Task,
        start: Run | Situation,
        runner: Runner,
        note: Callable[[Situation], None] | None = None,
    ) -> None:
        """With a situation for a start it goes on from there. `note` is told of each new one
        before anybody else is; if it raises, the action has not happened.
        """
        self.task = task
        self._runner = runner
        self._note = note
        # Replaced whole, so a reader needs no lock.
        self._now = start if isinstance(start, Situation) else Situation(start)
        self._turn = threading.Lock()
        self._who = object()  # by which the runner knows who asks again
        self._in_progress: str | None = None
        self._abandoned = threading.Event()
        self._bell = Bell()  # of the training in progress
        self._why_abandoned = ""
        self._reports = _taken_over(self._now)

    @property
    def now(self) -> Situation:
        """Where the episode stands, the epochs of an action in progress included."""
        return self._now

    @property
    def done(self) -> bool:
        return self._now.grade is not None

    @property
    def reports(self) -> tuple[EpochReport, ...]:
        """The epochs that the last action trained, at first those of a run that was taken over; for
        operators, never for the agent.
        """
        return self._reports

    def abandon(self, why: str = "the episode was reset or closed") -> None:
        """Stop an action in progress at the next epoch boundary; refuse all others. At once."""
        self._why_abandoned = why
        self._abandoned.set()
        self._bell.ring()

    def wait_until_idle(self) -> None:
        """Block until no action is in progress: after `abandon`, at most one epoch."""
        with self._turn:
            pass

    # The actions -----------------------------------------------------------------------------

    @abstractmethod
    def configure_training(self, changes: Mapping[str, Any]) -> TrainingStatus:
        """Set the options in `changes`, which are valid; the others stay."""

    @abstractmethod
    def run_epochs(self, num_epochs: int, stop: Callable[[], bool] = never) -> TrainingStatus:
        """Train up to `num_epochs`; `stop()` is asked at every epoch boundary and ends it early."""

    @abstractmethod
    def adjust_learning_rate(self, new_lr: float) -> TrainingStatus:
        """What is trained next uses exactly `new_lr`; a schedule keeps its shape from there."""

    @abstractmethod
    def toggle_augmentation(self, enabled: bool, strength: float | None = None) -> TrainingStatus:
        """Switch augmentation; a `strength` of None keeps the present one."""

    def submit_model(self) -> TrainingStatus:
        """Grade what was trained, and end the episode."""
        with self._action("submit_model") as now:
            return self._finish(now, now, "submitted", submit=True)

    def get_training_status(self) -> TrainingStatus:
        """Where the episode stands. Free at any time, and after the end."""
        running = self._in_progress
        now = self._now
        trained = self.progress(now)[0]
        if now.grade is not None:
            message = f"the episode is over, final score {now.grade.score:.4f}"
        elif running:
            message = f"{running} is in progress, {trained} {self.UNIT}s finished"
        else:
            message = f"{trained} of {self.task.max_epochs} {self.UNIT}s done"
        return self._status(now, message)

    def opening(self) -> TrainingStatus:
        """What reset shows: the task's goal."""
        return self._status(self._now, f"{self.task.title}. {self.task.goal}")

    # What the kinds of episodes say ----------------------------------------------------------

    @abstractmethod
    def progress(self, now: Situation) -> tuple[int, int]:
        """What was trained of the budget, and what is left of it."""

    @abstractmethod
    def _grade(self, now: Situation, *, by_agent: bool) -> Grade: ...

    @abstractmethod
    def _terms(self, before: Situation, after: Situation) -> RewardTerms:
        """The reward of the action that led from `before` to `after`."""

    @abstractmethod
    def _status(
        self,
        now: Situation,
        message: str,
        terms: RewardTerms | None = None,
        reports: Sequence[EpochReport] = (),
    ) -> TrainingStatus:
        """The one place where an observation is made; `reports` are what the action trained."""

    def _is_enough(self, record: EpochRecord) -> bool:
        """Whether training stops after this, whatever was asked for."""
        return record.diverged

    # How an action happens -------------------------------------------------------------------

    @contextmanager
    def _action(self, name: str) -> Generator[Situation, None, None]:
        """The one action in progress. If it raises, the episode stands where it stood before."""
        if not self._turn.acquire(blocking=False):
            raise ActionError(
                f"busy: {self._in_progress or 'another call'} is in progress; wait for its answer "
                "(get_training_status shows how far it is)"
            )
        before = self._now
        try:
            if self._abandoned.is_set():
                raise ActionError(self._why_abandoned)
            if before.grade is not None:
                raise ActionError("the episode is over: reset to begin another")
            self._in_progress = name
            yield before
        except BaseException:
            self._now = before
            raise
        finally:
            self._in_progress = None
            self._turn.release()

    def _train(
        self, now: Situation, plans: Sequence[Plan], stop: Callable[[], bool] = never
    ) -> tuple[Situation, tuple[EpochReport, ...]]:
        """`now` after at most these: fewer when stopped, abandoned, or when one is enough."""
        self._bell = bell_of(stop)

        def gone() -> bool:
            return stop() or self._abandoned.is_set()

        asker = Asker(gone, who=self._who, bell=self._bell)
        reports: list[EpochReport] = []
        with closing(self._runner.train(now.training, plans, asker)) as trained:
            for record, seconds, shared in trained:
                reports.append(EpochReport(record=record, seconds=seconds, shared=shared))
                now = replace(
                    now,
                    training=now.training.after(record),
                    is_diverged=record.diverged,
                    epochs_shared=now.epochs_shared + shared,
                )
                self._now = now  # for get_training_status; taken back if the action fails
                if self._is_enough(record):
                    break
        return now, tuple(reports)

    def _finish(
        self,
        before: Situation,
        after: Situation,
        message: str,
        reports: tuple[EpochReport, ...] = (),
        *,
        submit: bool = False,
    ) -> TrainingStatus:
        """Count the action, end the episode if that is due, and only then let it have happened."""
        after = replace(after, calls=after.calls + 1)
        if submit or after.calls >= self.task.tool_calls:
            found = self._grade(after, by_agent=submit)
            grade = found.model_copy(update={"attempt": after.attempt})
            after = replace(after, grade=grade)
            if not submit:
                message += (
                    f"; call {self.task.tool_calls} was the last, {self.GRADED} was submitted"
                )
            message += f"; final score {grade.score:.4f}"
        status = self._status(after, message, self._terms(before, after), reports)
        if self._note:
            self._note(after)
        self._now, self._reports = after, reports
        return status


def _taken_over(now: Situation) -> tuple[EpochReport, ...]:
    """What somebody else had trained: nobody had to wait for it."""
    if now.calls:
        return ()
    history = now.training.history
    return tuple(EpochReport(record=each, seconds=0.0, shared=True) for each in history)
