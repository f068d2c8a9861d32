"""The episode of one network: what its actions do, what is seen of it, what it earns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.episode.schedules import RunningSchedule, after_change
from ml_trainer_env.server.episode.signals import convergence_signal
from ml_trainer_env.server.episode.situation import Situation, plan
from ml_trainer_env.server.runtime.asking import never
from ml_trainer_env.server.validation import ActionError


class SingleEpisode(Episode):
    """One network is trained; the best checkpoint is graded."""

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
            plans = [plan(now, epoch) for epoch in range(now.epoch, now.epoch + wanted)]
            after, reports = self._train(now, plans, stop)
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

    def progress(self, now: Situation) -> tuple[int, int]:
        return now.epoch, self._remaining(now)

    def _grade(self, now: Situation, *, by_agent: bool) -> Grade:
        trained = now.training.best is not None
        return tasks.grade(
            self.task,
            now.training.history,
            "agent" if by_agent else "call_limit",
            self._runner.test_accuracy(now.training) if trained else None,
        )

    def _terms(self, before: Situation, after: Situation) -> RewardTerms:
        return rewards.step_reward(
            before.training.history,
            after.training.history,
            self.task.loss_levels,
            None if after.grade is None else after.grade.score,
        )

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
        reports: Sequence[EpochReport] = (),
    ) -> TrainingStatus:
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
            epochs_run=len(reports),
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
