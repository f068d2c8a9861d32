"""Regularisation in notches, weak to strong, so that an agent has one thing to decide."""

# pyright: strict

from __future__ import annotations

NOTCHES = (  # dropout, augmentation strength, weight decay
    (0.0, 0.0, 0.01),
    (0.1, 0.3, 0.02),
    (0.2, 0.5, 0.05),
    (0.3, 0.7, 0.1),
    (0.4, 0.85, 0.15),
)
MADE_FOR = 0.003  # learning rate


def notch(number: int) -> dict[str, float | bool]:
    """The options of `NOTCHES[number]`."""
    dropout, strength, weight_decay = NOTCHES[number]
    return {
        "dropout": dropout,
        "augmentation": strength > 0,
        "augmentation_strength": strength,
        "weight_decay": weight_decay,
    }


def notch_at(number: int, learning_rate: float) -> dict[str, float | bool]:
    """The same, where a step of `learning_rate` decays the weights as one at `MADE_FOR` does."""
    options = notch(number)
    decay = float(options["weight_decay"]) * MADE_FOR / learning_rate
    return options | {"weight_decay": min(1.0, decay)}
