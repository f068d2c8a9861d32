"""The recipes by which the families are measured, and the baselines that play them.

Sixteen rates, evenly over six orders of magnitude, regularised lightly and strongly in
turn. What a multiplier does to a network, one of them undoes; which one, only playing tells.
`constant` plays the one that is best on average over the instances of `train`, `oracle` the one
that is best on this very instance: what is known before, and what can be known after.
"""

# pyright: strict

from __future__ import annotations

from functools import cache

from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.policies import follow, playing, reference
from ml_trainer_env.frozen import measured, table
from ml_trainer_env.models import TrainingConfig
from ml_trainer_env.task_ids import Family, instance_id

COUNT = 16
LOWEST, HIGHEST = 2e-6, 3.0  # learning rate
LIGHT_DECAY, STRONG_DECAY = 3e-5, 2e-4  # of the weights in a step: learning rate x weight decay


def _recipe(number: int) -> TrainingConfig:
    rate = float(f"{LOWEST * (HIGHEST / LOWEST) ** (number / (COUNT - 1)):.2g}")
    strong = number % 2 == 1
    decay = STRONG_DECAY if strong else LIGHT_DECAY
    return TrainingConfig(
        optimizer="adamw",
        learning_rate=rate,
        batch_size=64,
        weight_decay=min(1.0, float(f"{decay / rate:.2g}")),
        dropout=0.25 if strong else 0.1,
        lr_schedule="warmup_cosine",
        warmup_epochs=1,
        augmentation=strong,
        augmentation_strength=0.5,
    )


POOL = tuple(_recipe(number) for number in range(COUNT))


def constant(attempt: Attempt) -> None:
    """The recipe of the pool that is best on `train`; on a classic task that of the MLPs."""
    of = instance_id(attempt.task_id)
    follow(attempt, playing(POOL[best_constant(of.family if of else "varied_mlp")]))


def oracle(attempt: Attempt) -> None:
    """The best recipe of the pool for this instance; on a classic task the reference."""
    of = instance_id(attempt.task_id)
    if of is None:
        reference(attempt)
        return
    line = measured(of)
    follow(attempt, playing(POOL[line.winner if line else best_constant(of.family)]))


@cache
def best_constant(family: Family) -> int:
    """The number of the recipe with the best mean score over the measured instances of `train`."""
    lines = [line for (split, _), line in table(family).items() if split == "train"]

    def mean_score(number: int) -> float:
        scores = [
            min(1.0, max(0.0, ((line.test[number] or 0.0) - line.low) / (line.high - line.low)))
            for line in lines
        ]
        return sum(scores) / max(1, len(scores))

    return max(range(COUNT), key=mean_score)
