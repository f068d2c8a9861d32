"""A learning rate range test (Smith 2017, arXiv 1506.01186), on few epochs and few calls.

An epoch at a rate that is far too low, then at ever higher ones, all on the same weights, so none
is lost: in long strides as long as nothing happens, then in short steps, until the loss falls by
much less than at the rate before. A run that was taken over says by its own curve where to begin:
it has learned, so its rate was a sane one, or it has not, so its rate was dead.
"""

# pyright: strict

from __future__ import annotations

import math

from ml_trainer_env.agents.attempt import Trial
from ml_trainer_env.models import TrainingStatus

FIRST = 2e-5
GUESSING = math.log(10)  # nats: no untrained network is better
HIGHEST = 10.0  # that the environment takes
STRIDE, STEP = 30.0, 4.0  # up, while nothing happens, and once something does
DEAD = 0.06  # nats; a loss that fell by less has not moved
SLOWER = 0.6  # of the fall at the rate before: this one is too high
RISEN = 0.3  # nats of the training loss above the last validation loss: so is this one
SHARE = 0.25  # of the budget, at most
LEARNED = 0.1  # nats by which the loss of a run that was taken over has fallen, if it learned
CAUTIOUS = 4.0  # what such a run's rate is multiplied by


def find_rate(trial: Trial) -> float:
    """A good learning rate of AdamW for this network, which trains a few epochs meanwhile."""
    status, taken_over = trial.status, trial.status.current_config
    if taken_over and _has_learned(status):
        return min(HIGHEST, taken_over.learning_rate * CAUTIOUS)
    rate = FIRST
    if taken_over:  # what kept it from learning: the decay of its weights, or its rate
        rate = taken_over.learning_rate * (1 if taken_over.weight_decay else STRIDE)
    trial.call(
        "configure_training",
        optimizer="adamw",
        learning_rate=rate,
        batch_size=32,
        lr_schedule="constant",
        weight_decay=0.0,
        dropout=0.0,
        augmentation=False,
    )
    return _climb(trial, rate, int(SHARE * status.remaining_budget))


def _has_learned(status: TrainingStatus) -> bool:
    losses = [loss for loss in status.val_loss_history_last_10 if loss is not None]
    return len(losses) > 1 and losses[0] - min(losses) > LEARNED


def _climb(trial: Trial, rate: float, epochs: int) -> float:
    """The last rate before the one that was too high."""
    good, fastest, before = rate, 0.0, trial.status.val_loss
    for _ in range(epochs):
        status = trial.run(1)
        if status.is_diverged or status.train_loss is None or status.val_loss is None:
            return good / STEP
        start = max(status.train_loss, GUESSING) if before is None else before
        fall = start - status.val_loss
        too_high = status.train_loss > start + RISEN
        if fastest > DEAD and (too_high or fall < SLOWER * fastest):
            return good
        good, fastest, before = rate, max(fastest, fall), status.val_loss
        rate = min(HIGHEST, rate * (STRIDE if fall < DEAD else STEP))
        trial.call("adjust_learning_rate", new_lr=rate)
    return good
