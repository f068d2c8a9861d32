"""One episode: the six actions, the budget, the reward, the end. Knows no protocol and no engine.

Guarantees:
- An action happens wholly or not at all. One that raises has changed nothing and cost nothing.
- One action at a time: a second one is refused at once, while `get_training_status` always answers,
  with the last finished epoch of an action in progress.
- At most as many counted actions as the task allows; the last one submits, unless it did so itself.
  The final score is added to exactly one reward.
- Nothing here draws a random number or sets a global: training is asked of a runner, run by run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from ml_trainer_env.models import (
    HISTORY_TAIL,
    CurrentConfig,
    EpochRecord,
    EpochReport,
    Grade,
    RewardTerms,
    TrainingConfig,
    TrainingStatus,
)
from ml_trainer_env.server import tasks
from ml_trainer_env.server.episode import rewards
from ml_trainer_env.server.episode.schedules import RunningSchedule, after_change
from ml_trainer_env.server.episode.signals import convergence_signal
from ml_trainer_env.server.episode.situation import Situation, plan
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.runtime.asking import Asker, Bell, bell_of, never
from ml_trainer_env.server.runtime.runner import Runner
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.server.validation import ActionError


class Episode:
    """An episode of `task`, begun at `start`, trained by `runner`. Any thread may call it."""

    def __init__(
        self,
        task: Task,
        start: Run | Situation,
        runner: Runner,
        note: Callable[[Situation], None] | None = None,
    ) -> None:
        """With a situation for a start it goes on from there. `note` is told of each new one."""
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

    def configure_training(self, changes: Mapping[str, Any]) -> TrainingStatus:
        """Set the options in `changes` (valid fields of TrainingConfig); the others stay."""
        with self._action("configure_training") as now:
            config = (now.config or TrainingConfig()).model_copy(update=dict(changes))
            schedule = after_change(
                now.config, config, now.schedule, now.epoch, self._remaining(now)
            )
            after = replace(now, config=config, schedule=schedule, is_diverged=False)
            told = ", ".join(f"{name}={value}" for name, value in changes.items())
            unchanged = "configuration unchanged" if now.config else "configured the defaults"
            message = f"configured {told}" if told else unchanged
            return self._finish(now, after, message + _resumption(now))

    def run_epochs(self, num_epochs: int, stop: Callable[[], bool] = never) -> TrainingStatus:
        """Train up to `num_epochs`; `stop()` is asked at every epoch boundary and ends it early."""
        with self._action("run_epochs") as now:
            self._require_configuration(now)
            if now.is_diverged:
                raise ActionError(
                    "training has diverged: call configure_training or adjust_learning_rate first; "
                    "training then resumes from the best checkpoint"
                )
            remaining = self._remaining(now)
            if remaining == 0:
                raise ActionError("the epoch budget is spent: call submit_model")
            wanted = min(num_epochs, remaining)
            after, reports = self._train(now, wanted, stop)
            if self._abandoned.is_set():
                raise ActionError(f"{self._why_abandoned} during run_epochs")
            if not reports:
                raise ActionError("run_epochs was called off before its first epoch")
            message = _told_of_run(num_epochs, wanted, len(reports), after)
            return self._finish(now, after, message, reports)

    def adjust_learning_rate(self, new_lr: float) -> TrainingStatus:
        """The next epoch uses exactly `new_lr`; a running schedule keeps its shape from there."""
        with self._action("adjust_learning_rate") as now:
            config, schedule = self._require_configuration(now)
            after = replace(
                now,
                config=config.model_copy(update={"learning_rate": float(new_lr)}),
                schedule=schedule.rescaled(float(new_lr), now.epoch),
                is_diverged=False,
            )
            return self._finish(
                now, after, f"learning rate of the next epoch set to {new_lr:g}" + _resumption(now)
            )

    def toggle_augmentation(self, enabled: bool, strength: float | None = None) -> TrainingStatus:
        """Switch augmentation; a `strength` of None keeps the present one."""
        with self._action("toggle_augmentation") as now:
            config, _ = self._require_configuration(now)
            changes: dict[str, Any] = {"augmentation": enabled}
            if strength is not None:
                changes["augmentation_strength"] = float(strength)
            config = config.model_copy(update=changes)
            state = f"on, strength {config.augmentation_strength:g}" if enabled else "off"
            return self._finish(now, replace(now, config=config), f"augmentation {state}")

    def submit_model(self) -> TrainingStatus:
        """Grade the best checkpoint and end the episode."""
        with self._action("submit_model") as now:
            return self._finish(now, now, "submitted", submit=True)

    def get_training_status(self) -> TrainingStatus:
        """Where the episode stands. Free at any time, and after the end."""
        running = self._in_progress
        now = self._now
        if now.grade is not None:
            message = f"the episode is over, final score {now.grade.score:.4f}"
        elif running:
            message = f"{running} is in progress, {now.epoch} epochs finished"
        else:
            message = f"{now.epoch} of {self.task.max_epochs} epochs done"
        return self._status(now, message)

    def opening(self) -> TrainingStatus:
        """What reset shows: the task's goal."""
        return self._status(self._now, f"{self.task.title}. {self.task.goal}")

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
        self, now: Situation, epochs: int, stop: Callable[[], bool]
    ) -> tuple[Situation, tuple[EpochReport, ...]]:
        """`now` after at most `epochs` epochs: fewer when stopped, abandoned or diverged."""
        self._bell = bell_of(stop)

        def gone() -> bool:
            return stop() or self._abandoned.is_set()

        asker = Asker(gone, who=self._who, bell=self._bell)
        reports: list[EpochReport] = []
        plans = [plan(now, epoch) for epoch in range(now.epoch, now.epoch + epochs)]
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
            grade = self._grade(after, by_agent=submit)
            after = replace(after, grade=grade)
            if not submit:
                message += (
                    f"; call {self.task.tool_calls} was the last, the best model was submitted"
                )
            message += f"; final score {grade.score:.4f}"
        terms = rewards.step_reward(
            before.training.history,
            after.training.history,
            self.task.loss_levels,
            None if after.grade is None else after.grade.score,
        )
        status = self._status(after, message, terms, len(reports))
        self._now, self._reports = after, reports
        if self._note:
            self._note(after)
        return status

    def _grade(self, now: Situation, *, by_agent: bool) -> Grade:
        trained = now.training.best is not None
        grade = tasks.grade(
            self.task,
            now.training.history,
            "agent" if by_agent else "call_limit",
            self._runner.test_accuracy(now.training) if trained else None,
        )
        return grade.model_copy(update={"attempt": now.attempt})

    def _require_configuration(self, now: Situation) -> tuple[TrainingConfig, RunningSchedule]:
        if now.config is None or now.schedule is None:
            raise ActionError("nothing is configured yet: call configure_training first")
        return now.config, now.schedule

    def _remaining(self, now: Situation) -> int:
        return self.task.max_epochs - now.epoch

    def _status(
        self,
        now: Situation,
        message: str,
        terms: RewardTerms | None = None,
        epochs_run: int = 0,
    ) -> TrainingStatus:
        """The one place where an observation is made."""
        history, shown = now.training.history, _shown(now)
        best = max(history, key=_accuracy, default=None)  # the earliest on a tie
        best = None if best is None or best.diverged else best
        terms = terms or RewardTerms()
        tail = history[-HISTORY_TAIL:]
        return TrainingStatus(
            task_id=self.task.task_id,
            message=message,
            current_epoch=now.epoch,
            max_epochs=self.task.max_epochs,
            remaining_budget=self._remaining(now),
            epochs_run=epochs_run,
            train_loss=shown and shown.train_loss,
            train_accuracy=shown and shown.train_accuracy,
            val_loss=shown and shown.val_loss,
            val_accuracy=shown and shown.val_accuracy,
            best_val_accuracy=best and best.val_accuracy,
            best_val_epoch=best and best.epoch,
            graded_epoch=now.training.best and now.training.best.epoch,
            generalization_gap=shown and shown.gap,
            loss_history_last_10=tuple(record.train_loss for record in tail),
            val_loss_history_last_10=tuple(record.val_loss for record in tail),
            convergence_signal=convergence_signal(history),
            is_diverged=now.is_diverged,
            current_config=_current_config(now),
            tool_calls_left=self.task.tool_calls - now.calls,
            reward=terms.total,
            reward_terms=terms,
            done=now.grade is not None,
            grade=now.grade,
        )


def _accuracy(record: EpochRecord) -> float:
    return -1.0 if record.val_accuracy is None else record.val_accuracy


def _taken_over(now: Situation) -> tuple[EpochReport, ...]:
    """What somebody else had trained: nobody had to wait for it."""
    if now.calls:
        return ()
    history = now.training.history
    return tuple(EpochReport(record=each, seconds=0.0, shared=True) for each in history)


def _shown(now: Situation) -> EpochRecord | None:
    """The epoch whose metrics are those of the present weights.

    While diverged that is the diverged epoch, without metrics. Once training has resumed, and until
    it goes on, it is the best checkpoint; None when there is none.
    """
    history = now.training.history
    if not history:
        return None
    if history[-1].diverged and not now.is_diverged:
        return now.training.best
    return history[-1]


def _current_config(now: Situation) -> CurrentConfig | None:
    if now.config is None or now.schedule is None:
        return None
    return CurrentConfig(
        **now.config.model_dump(), learning_rate_in_force=now.schedule.rate(now.epoch)
    )


def _resumption(now: Situation) -> str:
    """What a change of the configuration adds after a divergence."""
    if not now.is_diverged:
        return ""
    best = now.training.best
    where = f"the best checkpoint, epoch {best.epoch}," if best else "the initial weights"
    return f"; training resumes from {where} with fresh optimizer state"


def _told_of_run(asked: int, wanted: int, ran: int, after: Situation) -> str:
    """What `run_epochs` did, in one line."""
    message = f"trained {ran} epoch{'s' if ran > 1 else ''}"
    if after.is_diverged:
        return (
            f"{message}, the last one diverged and training stopped: call configure_training or "
            "adjust_learning_rate, then it resumes from the best checkpoint"
        )
    if ran < wanted:
        return f"{message} of {asked}: called off by the client"
    if wanted < asked:
        return f"{message} of {asked}: that was all that remained of the budget"
    return message
