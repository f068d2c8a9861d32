"""Learning rate schedules as values: which rate an epoch uses, whatever calls led to it.

Epochs are counted from 0 over the whole episode budget, so a schedule says the same whether
training is asked for at once or epoch by epoch. Rates are finite and never negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ml_trainer_env.models import Schedule, TrainingConfig

STEP_PARTS = 3  # a step schedule divides its horizon into this many parts
STEP_FACTOR = 10  # and its rate by this after each part but the last


@dataclass(frozen=True, slots=True)
class RunningSchedule:
    """A schedule that was set at epoch `first`, with `horizon` epochs of budget (T) before it.

    A schedule is a shape, in units of its peak, times a rate: an epoch where the shape is
    `reference` uses exactly `learning_rate`. At first that is the peak; `rescaled` moves it.
    """

    kind: Schedule
    learning_rate: float
    first: int
    horizon: int  # at least 1
    warmup_epochs: int = 0  # only for warmup_cosine
    reference: float = 1.0

    @classmethod
    def start(cls, config: TrainingConfig, epoch: int, remaining: int) -> RunningSchedule:
        """The schedule of `config`, set before `epoch` with `remaining` epochs of budget."""
        return cls(
            kind=config.lr_schedule,
            learning_rate=config.learning_rate,
            first=epoch,
            horizon=max(1, remaining),  # set on a spent budget it has no epoch, but still a rate
            warmup_epochs=config.warmup_epochs if config.lr_schedule == "warmup_cosine" else 0,
        )

    def rate(self, epoch: int) -> float:
        """The learning rate of `epoch`; beyond the horizon, that of its last epoch."""
        return self.learning_rate * (self._shape(epoch) / self.reference)

    def rescaled(self, new_lr: float, epoch: int) -> RunningSchedule:
        """The same shape from here on, at the height where `rate(epoch)` is exactly `new_lr`.

        Adjusted low on a warm-up, the rest of the warm-up rises from there in proportion.
        """
        return replace(self, learning_rate=new_lr, reference=self._shape(epoch))

    def _shape(self, epoch: int) -> float:
        """The rate in units of the peak: in (0, 1], for every epoch."""
        i = min(max(epoch - self.first, 0), self.horizon - 1)
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            return 1.0 / STEP_FACTOR ** (STEP_PARTS * i // self.horizon)
        if i < self.warmup_epochs:
            return (i + 1) / (self.warmup_epochs + 1)
        annealing = self.horizon - self.warmup_epochs  # at least 1: i got past the warm-up
        return 0.5 * (1.0 + math.cos(math.pi * (i - self.warmup_epochs) / annealing))


def after_change(
    old: TrainingConfig | None,
    new: TrainingConfig,
    schedule: RunningSchedule | None,
    epoch: int,
    remaining: int,
) -> RunningSchedule:
    """The schedule in force once the configuration went from `old` to `new` before `epoch`.

    A running schedule goes on, unless a value that shapes it changed: then the new one starts over
    the `remaining` budget. Sending the same values again, or changing anything else, restarts
    nothing. After `rescaled`, the caller's configuration must carry the adjusted rate as its
    `learning_rate`, so that asking for the former rate counts as the change that it is.
    """
    if old is None or schedule is None or _shaping(old) != _shaping(new):
        return RunningSchedule.start(new, epoch, remaining)
    return schedule


def _shaping(config: TrainingConfig) -> tuple[Schedule, float, int | None]:
    """What a schedule is made of; the length of the warm-up only where there is one."""
    warmup = config.warmup_epochs if config.lr_schedule == "warmup_cosine" else None
    return config.lr_schedule, config.learning_rate, warmup
