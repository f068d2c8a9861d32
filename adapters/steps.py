"""An episode in a few large steps: what an action means, and what is seen, as numbers.

A tool call is a small thing: a policy that is no language model would need dozens of them to learn
anything from. One step sets a configuration and trains, so an episode has a handful of steps; at
most as many as it has calls.
"""

# pyright: strict

from __future__ import annotations

import math
import operator
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Self

from ml_trainer_env.adapters.rollout import Rollout
from ml_trainer_env.agents.moves import Move, configure, run
from ml_trainer_env.agents.regularisation import NOTCHES, notch_at
from ml_trainer_env.models import MAX_EPOCHS_PER_CALL, TrainingStatus

FACTORS = (1 / 30, 1 / 10, 1 / 3, 1.0, 3.0, 10.0, 30.0)
SCHEDULES = ("constant", "cosine")
EPOCHS = (1, 2, 4, 8, None)  # None: all that is left, then submit
ACTIONS = (len(FACTORS), len(NOTCHES), len(SCHEDULES), len(EPOCHS))

START = 1e-3  # the rate that the first factor multiplies, where nothing is configured
LOWEST, HIGHEST = 1e-6, 10.0
CALLS_OF_A_STEP = 2

REMEMBERED = 8  # steps
GUESSING = math.log(10)  # nats: the loss of an untrained network
LIMIT = 5.0  # of every feature


class Decision(NamedTuple):
    """One action."""

    factor: float  # of the learning rate
    notch: int  # of regularisation
    schedule: str
    epochs: int | None

    @classmethod
    def of(cls, action: Sequence[int]) -> Self:
        """From an index into each of `ACTIONS`. Raises IndexError for what is none."""
        factor, notch, schedule, epochs = map(operator.index, action)
        if min(factor, notch, schedule, epochs) < 0:
            raise IndexError(f"an action has indices from 0 on; got {list(action)}")
        return cls(FACTORS[factor], range(len(NOTCHES))[notch], SCHEDULES[schedule], EPOCHS[epochs])


def play(rollout: Rollout, decision: Decision) -> None:
    """Carry out `decision`: `CALLS_OF_A_STEP` calls at most, or what training to the end takes.

    Raises RuntimeError for a call that is refused: no decision asks for what is not allowed.
    """
    change = _change(_status(rollout), decision)
    if change is not None:
        _call(rollout, change)
    everything = decision.epochs is None or _calls_run_short(_status(rollout))
    while not rollout.is_over:
        status = _status(rollout)
        if status.remaining_budget == 0:
            rollout.finish()
            return
        if status.is_diverged:
            return
        most = MAX_EPOCHS_PER_CALL if everything else decision.epochs or 0
        _call(rollout, run(min(most, status.remaining_budget)))
        if not everything and _status(rollout).remaining_budget:
            return


def _call(rollout: Rollout, move: Move) -> None:
    answer = rollout.call(*move)
    if answer.error is not None:
        raise RuntimeError(answer.error.message)


def rate_of(status: TrainingStatus) -> float:
    """The base learning rate, or the one that the first factor multiplies."""
    return status.current_config.learning_rate if status.current_config else START


def _change(status: TrainingStatus, decision: Decision) -> Move | None:
    """What makes the configuration that of the decision; None where it is."""
    rate = min(HIGHEST, max(LOWEST, rate_of(status) * decision.factor))
    wanted = {
        "optimizer": "adamw",
        "learning_rate": rate,
        "batch_size": 64,
        "lr_schedule": decision.schedule,
        **notch_at(decision.notch, rate),
    }
    present = status.current_config.model_dump() if status.current_config else {}
    same = all(present.get(name) == value for name, value in wanted.items())
    return None if same and not status.is_diverged else configure(**wanted)


def _calls_run_short(status: TrainingStatus) -> bool:
    """Whether another step like this one would leave too few calls to spend the budget."""
    to_the_end = 1 + math.ceil(status.remaining_budget / MAX_EPOCHS_PER_CALL) + 1
    return status.tool_calls_left < CALLS_OF_A_STEP + to_the_end


def _status(rollout: Rollout) -> TrainingStatus:
    assert rollout.status is not None, "an episode is open"
    return rollout.status


class _Past(NamedTuple):
    """What came of a step."""

    rate: float
    epochs: int
    val_fall: float  # nats
    train_fall: float  # nats
    val_accuracy: float
    diverged: bool


class Seen:
    """The observation: where training stands, and what the last steps have brought."""

    def __init__(self, status: TrainingStatus) -> None:
        self._now = status
        self._past: deque[_Past] = deque(maxlen=REMEMBERED)

    def after(self, status: TrainingStatus) -> None:
        """Take in what a step has led to."""
        before, self._now = self._now, status
        self._past.appendleft(
            _Past(
                rate=rate_of(status),
                epochs=status.current_epoch - before.current_epoch,
                val_fall=_loss(before.val_loss) - _loss(status.val_loss),
                train_fall=_loss(before.train_loss) - _loss(status.train_loss),
                val_accuracy=status.val_accuracy or 0.0,
                diverged=status.is_diverged,
            )
        )

    def features(self) -> list[float]:
        """The numbers of `FEATURES`, each within +-`LIMIT`."""
        found = [*_standing(self._now), *_configured(self._now), *_curve(self._now)]
        rate = rate_of(self._now)
        for past in self._past:
            found += [
                1.0,
                math.log10(past.rate / rate) / 3,
                past.epochs / 8,
                past.val_fall,
                past.train_fall,
                past.val_accuracy,
                float(past.diverged),
            ]
        found += [0.0] * (len(FEATURES) - len(found))
        return [max(-LIMIT, min(LIMIT, value)) for value in found]


_STANDING = (
    "budget left", "epochs left", "calls left", "train loss", "val loss", "train accuracy",
    "val accuracy", "best val accuracy", "epochs since the best", "gap", "diverged",
)  # fmt: skip
_CONFIGURED = (
    "configured", "rate", "rate in force", "decay in a step", "dropout", "augmentation",
    "constant rate", "sgd", "adam",
)  # fmt: skip
_CURVE = tuple(f"val loss fell, {n} epochs ago" for n in range(9))
_STEP = ("there", "rate", "epochs", "val loss fell", "train loss fell", "val accuracy", "diverged")
FEATURES = (
    *_STANDING,
    *_CONFIGURED,
    *_CURVE,
    *(f"{name}, {n} steps ago" for n in range(REMEMBERED) for name in _STEP),
)


def _standing(now: TrainingStatus) -> list[float]:
    return [
        now.remaining_budget / now.max_epochs,
        now.remaining_budget / 40,
        now.tool_calls_left / 20,
        _loss(now.train_loss) - GUESSING,
        _loss(now.val_loss) - GUESSING,
        now.train_accuracy or 0.0,
        now.val_accuracy or 0.0,
        now.best_val_accuracy or 0.0,
        (now.current_epoch - (now.best_val_epoch or 0)) / 10,
        5 * (now.generalization_gap or 0.0),
        float(now.is_diverged),
    ]


def _configured(now: TrainingStatus) -> list[float]:
    config = now.current_config
    if config is None:
        return [0.0] * len(_CONFIGURED)
    return [
        1.0,
        _log(config.learning_rate),
        _log(config.learning_rate_in_force),
        _log(config.learning_rate * config.weight_decay),
        2 * config.dropout,
        config.augmentation_strength if config.augmentation else 0.0,
        float(config.lr_schedule == "constant"),
        float(config.optimizer == "sgd"),
        float(config.optimizer == "adam"),
    ]


def _curve(now: TrainingStatus) -> list[float]:
    """The steps of the validation loss, newest first."""
    losses = [_loss(loss) for loss in now.val_loss_history_last_10]
    falls = [5 * (before - after) for before, after in pairwise(losses)][::-1]
    return falls + [0.0] * (len(_CURVE) - len(falls))


def _loss(nats: float | None) -> float:
    """One that does not exist is that of guessing; high ones are all alike."""
    return GUESSING if nats is None else min(nats, 2 * GUESSING)


def _log(rate: float) -> float:
    """1e-6 to 10 as -1 to 1."""
    return (math.log10(max(rate, 1e-8)) + 2.5) / 3.5
