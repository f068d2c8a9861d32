"""The convergence signal: one word on how training goes, by rules written beside their sentences.

The signal is a function of the epoch history alone. The rules are tried in order and the first
that holds is the signal; `DEFINITIONS` hands out the sentences, which the rules follow literally.
"Finished" epochs are those that did not diverge; "train" is the clean measure, in eval mode
without augmentation, so that dropout and augmentation change no signal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_trainer_env.models import EpochRecord, Signal

WARM_UP = 3  # finished epochs before a trend is read
WINDOW = 5  # finished epochs that "recently" means

OVERFIT_EPOCHS = 3
OVERFIT_LOSS_RISE = 0.05  # relative to the lowest val loss
OVERFIT_GAP = 0.02

LEARNED_ACCURACY = 0.5  # train accuracy from which a network has begun to fit its data
STALLING_FALL = 0.03  # relative fall of the lowest val loss an epoch

IMPROVED_ACCURACY = 0.002
IMPROVED_LOSS = 0.005  # relative to the lowest val loss


class _Finished(NamedTuple):
    """The measurements of one finished epoch; accuracies in 0..1, losses in nats."""

    val_loss: float
    val_accuracy: float
    train_loss: float
    train_accuracy: float


History = Sequence[EpochRecord]


def convergence_signal(history: History) -> Signal:
    """The first signal in `DEFINITIONS` whose definition holds for `history`."""
    return next(signal for signal, _, holds in _RULES if holds(history))


def _not_started(history: History) -> bool:
    return not history


def _diverged(history: History) -> bool:
    return history[-1].diverged


def _warming_up(history: History) -> bool:
    return any(record.diverged for record in history[-WARM_UP:]) or len(history) < WARM_UP


def _overfitting(history: History) -> bool:
    epochs = _finished(history)
    lowest = min(epochs, key=lambda epoch: epoch.val_loss)
    last = epochs[-1]
    return (
        all(
            epoch.val_loss > lowest.val_loss * (1 + OVERFIT_LOSS_RISE)
            for epoch in epochs[-OVERFIT_EPOCHS:]
        )
        and last.train_loss < lowest.train_loss
        and last.train_accuracy - last.val_accuracy > OVERFIT_GAP
    )


def _stalling(history: History) -> bool:
    before, recent = _window(history)
    fall = 1 - STALLING_FALL * len(recent)
    return (
        recent[-1].train_accuracy < LEARNED_ACCURACY
        and _lowest_loss([*before, *recent]) > _lowest_loss(before) * fall
    )


def _improving(history: History) -> bool:
    before, recent = _window(history)
    gained = _best_accuracy(recent) - _best_accuracy(before)
    # Accuracies are counts over a total: rounding keeps a gain of exactly 2 in 1,000 a gain.
    return round(gained, 9) >= IMPROVED_ACCURACY or _lowest_loss(recent) < _lowest_loss(before) * (
        1 - IMPROVED_LOSS
    )


def _always(history: History) -> bool:
    return True


def _window(history: History) -> tuple[list[_Finished], list[_Finished]]:
    """The finished epochs, cut into those before and the recent ones; neither part is empty."""
    epochs = _finished(history)
    cut = max(1, len(epochs) - WINDOW)
    return epochs[:cut], epochs[cut:]


def _finished(history: History) -> list[_Finished]:
    return [
        _Finished(r.val_loss, r.val_accuracy, r.clean_train_loss, r.clean_train_accuracy)
        for r in history
        if r.val_loss is not None
        and r.val_accuracy is not None
        and r.clean_train_loss is not None
        and r.clean_train_accuracy is not None
    ]


def _lowest_loss(epochs: Sequence[_Finished]) -> float:
    return min(epoch.val_loss for epoch in epochs)


def _best_accuracy(epochs: Sequence[_Finished]) -> float:
    return max(epoch.val_accuracy for epoch in epochs)


_RECENTLY = f"in the last {WINDOW} finished epochs (since the first one, where that is fewer)"

_RULES: tuple[tuple[Signal, str, Callable[[History], bool]], ...] = (
    (
        "not_started",
        "No epoch has been run.",
        _not_started,
    ),
    (
        "diverged",
        "The last epoch diverged.",
        _diverged,
    ),
    (
        "warming_up",
        f"Fewer than {WARM_UP} epochs have finished since the start or the last divergence.",
        _warming_up,
    ),
    (
        "overfitting",
        f"The val loss of each of the last {OVERFIT_EPOCHS} finished epochs is more than "
        f"{OVERFIT_LOSS_RISE:.0%} above the lowest val loss, while the train loss of the last one "
        "is below that of the epoch with the lowest val loss and its train accuracy exceeds its "
        f"val accuracy by more than {OVERFIT_GAP * 100:g} points.",
        _overfitting,
    ),
    (
        "stalling",
        f"The train accuracy of the last epoch is below {LEARNED_ACCURACY:.0%}, and the lowest "
        f"val loss fell by less than {STALLING_FALL:.0%} an epoch {_RECENTLY}.",
        _stalling,
    ),
    (
        "improving",
        f"The best val accuracy rose by at least {IMPROVED_ACCURACY * 100:g} points or the lowest "
        f"val loss fell by more than {IMPROVED_LOSS:.1%} {_RECENTLY}.",
        _improving,
    ),
    (
        "plateaued",
        "None of the other signals: the network has learned, and neither the best val accuracy "
        "nor the lowest val loss improves any more.",
        _always,
    ),
)

DEFINITIONS: dict[Signal, str] = {signal: sentence for signal, sentence, _ in _RULES}
