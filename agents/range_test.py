"""A learning rate range test (Smith 2017, arXiv 1506.01186), on few epochs and few calls.

An epoch at a rate that is far too low, then at ever higher ones, all on the same weights, so none
is lost: in long strides as long as nothing happens, then in short steps, until the loss falls by
much less than at the rate before. A run that was taken over says by its own curve where to begin:
at its rate if it has learned, far above if it has not.
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
UNSURE = 0.15  # the same, where it was not measured before
SLOWER = 0.6  # of the fall at the rate before: this one is too high
RISEN = 0.3  # nats of the training loss above the last validation loss: so is this one
RISING = 0.03  # nats of the validation loss, once it has moved: and this one
SHARE = 0.25  # of the budget, at most
LEARNED = 0.1  # nats by which the loss of a run that was taken over has fallen, if it learned
KNOWING = 0.25  # val accuracy: no untrained network is so lucky
MOST = 6  # epochs, of two calls each


def find_rate(trial: Trial) -> float:
    """A good learning rate of AdamW for this network, which trains a few epochs meanwhile."""
    status, taken_over = trial.status, trial.status.current_config
    learned = taken_over is not None and _has_learned(status)
    rate = FIRST
    if taken_over:  # what kept one from learning: the decay of its weights, or its rate
        sane = learned or taken_over.weight_decay
        rate = min(HIGHEST, taken_over.learning_rate * (1 if sane else STRIDE))
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
    return _climb(trial, rate, STEP if learned else STRIDE)


def _has_learned(status: TrainingStatus) -> bool:
    losses = [loss for loss in status.val_loss_history_last_10 if loss is not None]
    fell = len(losses) > 1 and losses[0] - min(losses) > LEARNED
    return fell or (status.best_val_accuracy or 0.0) > KNOWING


def _climb(trial: Trial, rate: float, stride: float) -> float:
    """The last rate before the one that was too high; `stride` up while nothing happens."""
    good, fastest, before = rate, 0.0, trial.status.val_loss
    most = min(int(SHARE * trial.status.remaining_budget), MOST)
    for number in range(most):
        if number:
            trial.call("adjust_learning_rate", new_lr=rate)
        status = trial.run(1)
        if status.is_diverged or status.train_loss is None or status.val_loss is None:
            return good / STEP
        # Of a fresh network the loss before is not known, and the two sets of images differ.
        start = max(status.train_loss, GUESSING) if before is None else before
        fall = start - status.val_loss
        moved = fall > (UNSURE if before is None else DEAD)
        risen = before is not None and fall < -RISING and (fastest > 0 or stride < STRIDE)
        slower = fastest > 0 and fall < SLOWER * fastest
        if risen or slower or status.train_loss > start + RISEN:
            return good
        good, before = rate, status.val_loss
        fastest = max(fastest, fall) if moved else fastest
        rate = min(HIGHEST, rate * (STEP if moved else stride))
    return good
