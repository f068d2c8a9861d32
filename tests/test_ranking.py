"""On every task a good agent earns more than a naive one, that more than chance, that more than
doing nothing: by the score, and by the return that an RL trainer sees. All for real.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any, get_args

import pytest
from real import STATUS, SUBMIT, Player, configure, rate, run

from ml_trainer_env.agents.scripted import Move, scripted
from ml_trainer_env.models import (
    MAX_EPOCHS_PER_CALL,
    BatchSize,
    Optimizer,
    Schedule,
    TaskId,
    TrainingStatus,
)


def naive(status: TrainingStatus) -> Move:
    """The usual first try: adam with its defaults, the whole budget."""
    if status.current_config is None:
        return configure(optimizer="adam", learning_rate=0.001, batch_size=64)
    return run(MAX_EPOCHS_PER_CALL) if status.remaining_budget else SUBMIT


def erratic(chance: random.Random, status: TrainingStatus) -> Move:
    """A random tool with random arguments, uniform over what is allowed; rates log-uniform."""
    options: dict[str, Any] = {
        "optimizer": chance.choice(get_args(Optimizer)),
        "learning_rate": 10 ** chance.uniform(-5, 1),
        "batch_size": chance.choice(get_args(BatchSize)),
        "weight_decay": chance.random(),
        "dropout": chance.uniform(0, 0.5),
        "lr_schedule": chance.choice(get_args(Schedule)),
        "warmup_epochs": chance.randint(0, 20),
        "augmentation": chance.random() < 0.5,
        "augmentation_strength": chance.random(),
    }
    chosen = chance.sample(sorted(options), chance.randint(1, len(options)))
    return chance.choice(
        [
            configure(**{name: options[name] for name in chosen}),
            run(chance.randint(1, MAX_EPOCHS_PER_CALL)),
            rate(options["learning_rate"]),
            Move(
                "toggle_augmentation",
                {"enabled": options["augmentation"], "strength": options["augmentation_strength"]},
            ),
            STATUS,
            SUBMIT,
        ]
    )


def compare(task_id: TaskId, erratic_episodes: int) -> None:
    """Gold > naive > random > nothing, by score and by return."""
    gold = Player(task_id).follow(scripted)
    usual = Player(task_id).follow(naive)
    wild = [
        Player(task_id).follow(partial(erratic, random.Random(seed)))
        for seed in range(erratic_episodes)
    ]
    nothing = Player(task_id).do(SUBMIT)
    wild_score = sum(outcome.score for outcome in wild) / len(wild)
    wild_total = sum(outcome.total for outcome in wild) / len(wild)
    assert gold.score > usual.score > wild_score > nothing.score == 0
    assert gold.total > usual.total > wild_total
    assert usual.total > nothing.total == 0


def test_gold_naive_random_nothing() -> None:
    compare("easy_mnist", erratic_episodes=6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task_id", ["medium_fashion", "hard_cifar"])
def test_gold_naive_random_nothing_on_the_larger_tasks(task_id: TaskId) -> None:
    compare(task_id, erratic_episodes=6)
