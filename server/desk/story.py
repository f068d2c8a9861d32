"""What the desk shows of an episode, wherever it comes from: a visitor, an agent, a record.

A `Story` is a value: the same one draws the same board. It holds what an agent may see and nothing
else, so the hidden-test accuracy is in it only once it is in the grade.
"""

# pyright: strict

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ml_trainer_env import frozen
from ml_trainer_env.models import EpochPlan, EpochRecord, TrainingConfig, TrainingStatus
from ml_trainer_env.server import instances
from ml_trainer_env.server.desk import words
from ml_trainer_env.server.episode.played import Played
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.task_ids import instance_id


@dataclass(frozen=True, slots=True)
class Era:
    """Epochs `first` to `last`, which one configuration ruled."""

    first: int
    last: int
    label: str


@dataclass(frozen=True, slots=True)
class Story:
    """An episode up to some moment."""

    task: Task
    seed: int
    status: TrainingStatus
    points: tuple[EpochRecord, ...]
    played: tuple[Played, ...]  # the calls that counted and those that were refused
    remark: str = ""  # what the agent said before its last call

    @property
    def graded(self) -> EpochRecord | None:
        """The epoch that would be graded; records of old task versions name the best one alone."""
        epoch = self.status.graded_epoch or self.status.best_val_epoch
        return next((point for point in self.points if point.epoch == epoch), None)

    @property
    def pool(self) -> Sequence[Sequence[float | None]]:
        """How the pool's recipes did on this instance, epoch by epoch: known with the grade."""
        return instances.pool_curves(self.task) if self.status.grade else ()

    @property
    def forks(self) -> frozen.Forked | None:
        """Of a cluster, what would have become of it otherwise: known with the grade."""
        of = instance_id(self.task.task_id)
        if of is None or self.task.cluster is None or not self.status.grade:
            return None
        return frozen.forks().get((of.split, of.index))

    @property
    def eras(self) -> tuple[Era, ...]:
        """None of a cluster, which has no epochs."""
        return () if self.task.cluster else eras(self.points, changes(self.played))


def live(environment: MLTrainerEnvironment) -> Story | None:
    """Where the episode of `environment` stands now; None when it has none. Any thread may ask."""
    episode, seed = environment.episode, environment.state.seed
    if episode is None or seed is None:
        return None
    played = environment.played
    status = episode.get_training_status()
    # Read after the status, so it may know of one epoch more; never of one less.
    history = _until(episode.now.training.history, status)
    return Story(
        task=episode.task,
        seed=seed,
        status=status,
        points=history,
        played=played,
    )


def _until(history: tuple[EpochRecord, ...], status: TrainingStatus) -> tuple[EpochRecord, ...]:
    """As much of it as the status knows of; of a cluster by its clock, rounded."""
    if status.cluster is None:
        return history[: status.current_epoch]
    now = status.cluster.seconds + 0.1
    return tuple(each for each in history if each.window and each.window.seconds <= now)


def changes(played: Sequence[Played]) -> frozenset[int]:
    """After which epochs the configuration was changed."""
    statuses = [move.status for move in played if move.status and move.status.current_config]
    return frozenset(
        later.current_epoch
        for earlier, later in pairwise(statuses)
        if _asked(earlier) != _asked(later)
    )


def eras(points: Sequence[EpochRecord], changed_after: frozenset[int]) -> tuple[Era, ...]:
    """Who ruled when. A schedule that moves the learning rate goes on ruling."""
    cuts = [
        index
        for index, (before, after) in enumerate(pairwise(points), start=1)
        if before.epoch in changed_after or _without_rate(before) != _without_rate(after)
    ]
    ends = [*cuts, len(points)] if points else []
    return tuple(_era(points[start:end]) for start, end in zip([0, *cuts], ends, strict=False))


def _era(points: Sequence[EpochRecord]) -> Era:
    first, last = points[0], points[-1]
    plan = _plan(first)
    rates = words.rates(plan.learning_rate, _plan(last).learning_rate)
    return Era(first.epoch, last.epoch, f"{plan.optimizer} at {rates}, {words.plan(plan)}")


def _plan(point: EpochRecord) -> EpochPlan:
    assert isinstance(point.plan, EpochPlan), "a cluster has no epochs"
    return point.plan


def _without_rate(point: EpochRecord) -> EpochPlan:
    return _plan(point).model_copy(update={"learning_rate": 0.0})


def _asked(status: TrainingStatus) -> dict[str, object]:
    config = status.current_config
    return config.model_dump(include=set(TrainingConfig.model_fields)) if config else {}
