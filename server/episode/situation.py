"""Where an episode stands, as a value, and where one begins."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace

from ml_trainer_env.events import Settings
from ml_trainer_env.models import EpochPlan, Grade, TrainingConfig
from ml_trainer_env.server.episode.schedules import RunningSchedule
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.runtime.asking import Asker
from ml_trainer_env.server.runtime.runner import Runner
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.server.validation import ActionError


@dataclass(frozen=True, slots=True)
class Situation:
    """Where an episode stands: all that an action reads and replaces."""

    training: Run
    config: TrainingConfig | None = None
    schedule: RunningSchedule | None = None  # set together with config
    settings: Settings | None = None  # of a cluster, where they are not the task's
    is_diverged: bool = False  # the last epoch diverged, and nothing was changed since
    calls: int = 0  # counted actions
    epochs_shared: int = 0  # of training's epochs, those taken from another session's
    attempt: int = 1  # of its session, on this task and seed
    grade: Grade | None = None  # set at the end

    @property
    def epoch(self) -> int:
        return self.training.epoch


def first(task: Task, untrained: Situation, runner: Runner, asker: Asker) -> Situation:
    """Where an episode of `task` begins.

    An inherited run is trained here, as its configuration says; one that diverges on the way goes
    on from its best checkpoint, as the engine has it. Raises `ActionError` when the asker is gone.
    """
    if task.inherited is None:
        return untrained
    config, epochs = task.inherited.config, task.inherited.epochs
    schedule = RunningSchedule.start(config, 0, epochs)
    now, run = replace(untrained, config=config, schedule=schedule), untrained.training
    plans = [plan(now, epoch) for epoch in range(epochs)]
    while run.epoch < epochs:
        with closing(runner.train(run, plans[run.epoch :], asker)) as trained:
            before = run.epoch
            for each in trained:
                run = run.after(each.record)
        if run.epoch == before:
            raise ActionError("reset was called off before the run to take over was there")
    return replace(now, training=run, is_diverged=run.history[-1].diverged)


def plan(now: Situation, epoch: int) -> EpochPlan:
    """What the epoch after `epoch` epochs uses, as things are. Needs a configuration."""
    config, schedule = now.config, now.schedule
    assert config is not None
    assert schedule is not None
    return EpochPlan(
        optimizer=config.optimizer,
        learning_rate=schedule.rate(epoch),
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        dropout=config.dropout,
        augmentation=config.augmentation_strength if config.augmentation else 0.0,
    )
