"""The episode of a cluster: an operator watches a distributed training, and acts on it.

What an action does to the cluster is an event (`events.py`), carried out by whoever trains. It
takes seconds of the virtual clock, which never goes back; at the deadline all that is left is to
submit. The reward is the final score and nothing else: whatever is paid for on the way would be
paid to those who ruin the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ml_trainer_env.events import (
    WINDOW,
    ConfigureData,
    ConfigureRanks,
    Diagnose,
    Diagnosis,
    Event,
    Restore,
    Settings,
    Train,
)
from ml_trainer_env.models import (
    HISTORY_TAIL,
    EpochRecord,
    EpochReport,
    Grade,
    RewardTerms,
    Signal,
    TrainingStatus,
)
from ml_trainer_env.server import counterfactuals
from ml_trainer_env.server.cluster import rates
from ml_trainer_env.server.cluster.checks import check, facts_of
from ml_trainer_env.server.episode import seen
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.episode.situation import Situation
from ml_trainer_env.server.runtime.asking import never
from ml_trainer_env.server.tasks import ClusterTerms
from ml_trainer_env.server.validation import ActionError, InvalidArguments

HIGHEST_RATE = 10.0
IMPROVED = 0.005  # relative to the lowest val loss
RECENT = 3  # windows


class ClusterEpisode(Episode):
    """A cluster trains until the deadline; its model as it stands then is graded."""

    UNIT = "window"
    GRADED = "the model"

    # The six -------------------------------------------------------------------------------------

    def configure_training(self, changes: Mapping[str, Any]) -> TrainingStatus:
        """Options of `ClusterConfig`. Setting a rate sets it for good, whatever came in between."""
        with self._action("configure_training") as now:
            self._require_time(now)
            given = dict(changes)
            if "gradient_clip" in given:
                given["clip"] = given.pop("gradient_clip") or None
            settings = self._settings(now).model_copy(update=given)
            if "learning_rate" in given:
                settings = settings.model_copy(update={"revision": settings.revision + 1})
            told = ", ".join(f"{name}={value}" for name, value in changes.items())
            message = f"configured {told}" if told else "configuration unchanged"
            return self._finish(now, replace(now, settings=settings), message)

    def run_epochs(self, num_epochs: int, stop: Callable[[], bool] = never) -> TrainingStatus:
        """Windows. An incident ends the call, so that somebody can look."""
        with self._action("run_epochs") as now:
            self._require_time(now)
            plans = [Train(settings=self._settings(now))] * num_epochs
            after, reports = self._train(now, plans, stop)
            if self._abandoned.is_set():
                raise ActionError(f"{self._why_abandoned} during run_epochs")
            if not reports:
                raise ActionError("run_epochs was called off before its first window")
            return self._finish(now, after, self._told_of_run(num_epochs, after, reports), reports)

    def adjust_learning_rate(self, new_lr: float) -> TrainingStatus:
        """The next step uses `new_lr`, and the schedule keeps its shape from there."""
        with self._action("adjust_learning_rate") as now:
            self._require_time(now)
            settings = self._settings(now)
            factor = rates.factor(settings, self._part(now))
            base = new_lr / factor
            if base > HIGHEST_RATE:
                raise InvalidArguments(
                    f"new_lr: at this point of the schedule at most {HIGHEST_RATE * factor:.3g}; "
                    f"got {new_lr:g}"
                )
            update = {"learning_rate": base, "revision": settings.revision + 1}
            settings = settings.model_copy(update=update)
            message = f"learning rate of the next step set to {new_lr:g}"
            return self._finish(now, replace(now, settings=settings), message)

    def toggle_augmentation(self, enabled: bool, strength: float | None = None) -> TrainingStatus:
        """Of text: a few characters are replaced by others."""
        with self._action("toggle_augmentation") as now:
            self._require_time(now)
            settings = self._settings(now)
            usual = settings.augmentation or seen.AUGMENTATION
            chosen = (usual if strength is None else float(strength)) if enabled else 0.0
            settings = settings.model_copy(update={"augmentation": chosen})
            state = f"on, strength {chosen:g}" if enabled else "off"
            return self._finish(now, replace(now, settings=settings), f"augmentation {state}")

    # The four that a cluster has in addition -----------------------------------------------------

    def restore_checkpoint(
        self, step: int, skip_batches: int = 0, load_optimizer: bool = True
    ) -> TrainingStatus:
        """Go back to the latest checkpoint up to `step`. The clock goes on."""
        event = Restore(step=step, skip_batches=skip_batches, load_optimizer=load_optimizer)
        return self._do("restore_checkpoint", event, "restored a checkpoint")

    def configure_ranks(
        self,
        exclude: Sequence[int] | None = None,
        use_spare: Sequence[int] = (),
        shares: Sequence[int] | None = None,
    ) -> TrainingStatus:
        """Without `exclude`, whoever is out stays out."""
        with self._action("configure_ranks") as now:
            out = exclude if exclude is not None else seen.latest(now.training.history).excluded
            event = ConfigureRanks(
                exclude=tuple(sorted(set(out))),
                use_spare=tuple(sorted(set(use_spare))),
                shares=None if shares is None else tuple(shares),
            )
            return self._happen(now, event, "the process group started again")

    def configure_data(
        self, quarantine_shards: Sequence[int] | None = None, reshuffle: bool = False
    ) -> TrainingStatus:
        """Without `quarantine_shards`, what is out stays out."""
        with self._action("configure_data") as now:
            before = seen.latest(now.training.history).quarantined
            out = before if quarantine_shards is None else quarantine_shards
            event = ConfigureData(quarantine=tuple(sorted(set(out))), reshuffle=reshuffle)
            return self._happen(now, event, "the loaders started again")

    def run_diagnostic(self, kind: Diagnosis) -> TrainingStatus:
        """Look closer. It takes seconds."""
        return self._do("run_diagnostic", Diagnose(what=kind), f"diagnosed: {kind}")

    def _do(self, name: str, event: Event, message: str) -> TrainingStatus:
        with self._action(name) as now:
            return self._happen(now, event, message)

    def _happen(self, now: Situation, event: Event, message: str) -> TrainingStatus:
        """Carried out wholly, even if the client is gone by then."""
        history = now.training.history
        before = facts_of(seen.latest(history) if history else None)
        wrong = check(self._terms_of_cluster.world, before, event)
        if wrong:
            raise ActionError(wrong)
        after, reports = self._train(now, [event])
        if not reports:
            raise ActionError(f"{self._why_abandoned or 'the call was called off'}")
        took = seen.latest(after.training.history).seconds - self._seconds(now)
        return self._finish(now, after, f"{message}, {took:.1f} s", reports)

    # What is seen, and what it is worth ----------------------------------------------------------

    def progress(self, now: Situation) -> tuple[int, int]:
        """Windows."""
        trained = len(seen.windows(now.training.history))
        left = self._deadline - self._seconds(now)
        return trained, max(0, math.ceil(left / (WINDOW * self._terms_of_cluster.step_seconds)))

    def _grade(self, now: Situation, *, by_agent: bool) -> Grade:
        loss = self._runner.test_accuracy(now.training)
        cluster = self._terms_of_cluster
        by = "agent" if by_agent else "call_limit"
        found = counterfactuals.grade(
            self.task.task_id, self.task.version, cluster.counterfactuals, loss, by
        )
        return found.model_copy(update={"hidden": dict(self.task.hidden)})

    def _terms(self, before: Situation, after: Situation) -> RewardTerms:
        return RewardTerms(submission=0.0 if after.grade is None else after.grade.score)

    def _is_enough(self, record: EpochRecord) -> bool:
        window = record.window
        assert window is not None
        return bool(window.incidents) or window.seconds >= self._deadline

    def _status(
        self,
        now: Situation,
        message: str,
        terms: RewardTerms | None = None,
        reports: Sequence[EpochReport] = (),
    ) -> TrainingStatus:
        trained = seen.windows(now.training.history)
        last = trained[-1] if trained else None
        tail = trained[-HISTORY_TAIL:]
        terms = terms or RewardTerms()
        windows, left = self.progress(now)
        return TrainingStatus(
            task_id=self.task.task_id,
            message=message,
            current_epoch=windows,
            max_epochs=self.task.max_epochs,
            remaining_budget=left,
            epochs_run=len(seen.windows([each.record for each in reports])),
            train_loss=last and last.train_loss,
            train_accuracy=None,
            val_loss=last and last.val_loss,
            val_accuracy=None,
            best_val_accuracy=None,
            best_val_epoch=None,
            generalization_gap=None,
            loss_history_last_10=tuple(each.train_loss for each in tail),
            val_loss_history_last_10=tuple(each.val_loss for each in tail),
            convergence_signal=_signal(trained),
            is_diverged=False,
            current_config=None,
            cluster=self._cluster(now, reports),
            tool_calls_left=self.task.tool_calls - now.calls,
            reward=terms.total,
            reward_terms=terms,
            done=now.grade is not None,
            grade=now.grade,
        )

    def _cluster(self, now: Situation, reports: Sequence[EpochReport]) -> seen.ClusterStatus:
        cluster, settings = self._terms_of_cluster, self._settings(now)
        return seen.status(
            now.training.history,
            [each.record for each in reports],
            deadline=self._deadline,
            step_seconds=cluster.step_seconds,
            settings=settings,
            part=self._part(now),
        )

    def _told_of_run(self, wanted: int, after: Situation, reports: Sequence[EpochReport]) -> str:
        message = f"trained {len(reports)} window{'s' if len(reports) > 1 else ''}"
        window = seen.latest(after.training.history)
        if window.seconds >= self._deadline:
            return f"{message}: the deadline has come, call submit_model"
        if window.incidents:
            return f"{message} of {wanted}, stopped by an incident"
        return message if len(reports) == wanted else f"{message} of {wanted}: called off"

    # Inside --------------------------------------------------------------------------------------

    @property
    def _terms_of_cluster(self) -> ClusterTerms:
        assert self.task.cluster is not None
        return self.task.cluster

    @property
    def _deadline(self) -> float:
        return self._terms_of_cluster.world.deadline

    def _settings(self, now: Situation) -> Settings:
        return now.settings or self._terms_of_cluster.settings

    def _seconds(self, now: Situation) -> float:
        return seen.latest(now.training.history).seconds

    def _part(self, now: Situation) -> float:
        """Of the time, that is over."""
        return self._seconds(now) / self._deadline

    def _require_time(self, now: Situation) -> None:
        if self._seconds(now) >= self._deadline:
            raise ActionError("the deadline has passed: call submit_model")


def _signal(trained: Sequence[EpochRecord]) -> Signal:
    """By the validation loss, window by window."""
    losses = [each.val_loss for each in trained if each.val_loss is not None]
    if not losses:
        return "not_started"
    if len(losses) <= RECENT:
        return "warming_up"
    improved = min(losses[-RECENT:]) < min(losses[:-RECENT]) * (1 - IMPROVED)
    return "improving" if improved else "plateaued"
