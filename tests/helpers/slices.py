"""Trainings on a slice of the real data, and digests of all that they hold.

Run as a script, this file prints the digest of every training of the matrix of tasks and
optimizers, so that another process can be compared with this one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from typing import Any, get_args

import pytest
import torch

from ml_trainer_env.models import EpochPlan, Optimizer
from ml_trainer_env.server import trainer
from ml_trainer_env.server.engine import varied
from ml_trainer_env.server.engine.resident import Resident, Rows, resident
from ml_trainer_env.server.engine.team import SERIAL, Team
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.trainer import TrainingState, advance

TRAIN, HELD_OUT = 256, 100  # images of the slice: with convolutions, four chunks of evaluation
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
RATES: dict[Optimizer, float] = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001}

MATRIX: list[tuple[str, Optimizer]] = [
    (task_id, optimizer) for task_id in TASKS for optimizer in OPTIMIZERS
]

every_task = pytest.mark.parametrize("task_id", TASKS)


def cut(dataset: str, train: int, held_out: int) -> Resident:
    """The first images of each split."""
    data = resident(dataset)

    def rows(whole: Rows, n: int) -> Rows:
        return Rows(whole.images[:n], whole.labels[:n])

    return Resident(
        train=rows(data.train, train),
        val=rows(data.val, held_out),
        test=rows(data.test, held_out),
        probe=rows(data.probe, held_out),
        train_labels=data.train_labels[:train],
    )


@cache
def small(dataset: str) -> Resident:
    return cut(dataset, TRAIN, HELD_OUT)


def plan(optimizer: Optimizer = "adam", **changes: Any) -> EpochPlan:
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "learning_rate": RATES[optimizer],
        "batch_size": 64,
        "weight_decay": 0.01,
        "dropout": 0.2,
        "augmentation": 0.5,
    }
    return EpochPlan(**options | changes)


def begin(task_id: str = "easy_mnist", seed: int = 0) -> TrainingState:
    task = TASKS[task_id]
    return trainer.start(task.workload, seed)


def trained(state: TrainingState, plans: Sequence[EpochPlan], team: Team = SERIAL) -> TrainingState:
    for each in plans:
        state = advance(state, each, team)
    return state


def course(optimizer: Optimizer) -> list[EpochPlan]:
    """Two epochs: the second at another rate and batch size, with the moments of the first."""
    first = plan(optimizer)
    second = plan(optimizer, learning_rate=RATES[optimizer] / 2, batch_size=32, dropout=0.4)
    return [first, second]


def bits(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"|".join(t.numpy().tobytes() for t in tensors)).hexdigest()


def digest(state: TrainingState) -> str:
    """Of everything that a state holds."""
    current, best = state.current, state.best_checkpoint
    tensors = (current.weights, current.statistics, best.weights, best.statistics, *state.moments)
    rest = [str(state.run), str(state.optimizer), str(state.steps)]
    return hashlib.sha256("|".join([bits(*tensors), *rest]).encode()).hexdigest()


def matrix_digest(training: tuple[str, Optimizer]) -> str:
    task_id, optimizer = training
    return digest(trained(begin(task_id, seed=3), course(optimizer)))


if __name__ == "__main__":
    varied.resident = small
    print(json.dumps({"/".join(training): matrix_digest(training) for training in MATRIX}))
