"""Small training states and an engine that makes them: real values, hardly any computing."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from ml_trainer_env.models import EpochPlan, EpochRecord
from ml_trainer_env.server.engine.resident import Resident, Rows, resident
from ml_trainer_env.server.runtime.asking import Asker
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.trainer import Checkpoint, TrainingState, Workload, next_key, start

SIZE = 1000  # weights


def plan(learning_rate: float = 0.001) -> EpochPlan:
    return EpochPlan(
        optimizer="adam",
        learning_rate=learning_rate,
        batch_size=64,
        weight_decay=0,
        dropout=0.2,
        augmentation=0.5,
    )


PLAN = plan()


def untrained(name: str = "start", seed: int = 0) -> TrainingState:
    first = Checkpoint(torch.full((SIZE,), float(seed)), torch.zeros(0))
    workload = Workload("mlp", "mnist", 1, 1)
    return TrainingState(f"{name}-{seed}", workload, seed, "fp32", (), first, first, None, (), 0)


def trained(state: TrainingState, plan: EpochPlan, accuracy: float | None = None) -> TrainingState:
    """Weights, moments and metrics that depend on all of the key; `accuracy` decides the best."""
    key = next_key(state.key, plan)
    generator = torch.Generator().manual_seed(int(key[:12], 16))
    drawn = torch.rand(3, SIZE, generator=generator)
    metric = float(drawn[0, 0]) / 3  # a float with all its bits
    record = EpochRecord(
        epoch=state.epoch + 1,
        plan=plan,
        train_loss=metric,
        train_accuracy=metric,
        val_loss=metric,
        val_accuracy=metric if accuracy is None else accuracy,
        clean_train_loss=metric,
        clean_train_accuracy=metric,
    )
    reached = Checkpoint(drawn[0].clone(), drawn[1, :7].clone())
    after = replace(state, key=key, history=(*state.history, record), current=reached)
    return replace(
        after,
        best_checkpoint=reached if after.best is record else state.best_checkpoint,
        optimizer=plan.optimizer,
        moments=(drawn[1].clone(), drawn[2].clone()),
        steps=state.steps + 1,
    )


def value(state: TrainingState) -> tuple[Any, ...]:
    """All that a state is, for comparing bit for bit."""
    checkpoints = (state.current, state.best_checkpoint)
    tensors = [t for c in checkpoints for t in (c.weights, c.statistics)] + list(state.moments)
    fields = (state.key, state.workload, state.seed, state.precision, state.history)
    rest = (state.optimizer, state.steps)
    return (*fields, *rest, *((t.dtype, t.shape, t.numpy().tobytes()) for t in tensors))


@cache
def small(dataset: str) -> Resident:
    """The first images of the real data set: epochs of two steps."""
    data = resident(dataset)

    def cut(rows: Rows) -> Rows:
        return Rows(rows.images[:128], rows.labels[:128])

    return Resident(
        train=cut(data.train),
        val=cut(data.val),
        test=cut(data.test),
        probe=cut(data.probe),
        train_labels=data.train_labels[:128],
    )


def begin(task_id: str, seed: int) -> TrainingState:
    """Untrained, with the task's real network."""
    task = TASKS[task_id]
    return start(Workload(task.network, task.dataset, task.shards, task.version), seed)


class SmallEngine:
    """A runner of small states. Close `gate` to hold every epoch and grade at its start."""

    def __init__(self) -> None:
        self.begun: list[str] = []  # the keys of what is being made, in order
        self.graded: list[str] = []  # and of what is being graded
        self.failures: list[Exception] = []  # raised by what begins next, one each
        self.gate = threading.Event()
        self.gate.set()

    def advance(
        self, state: TrainingState, plan: EpochPlan, asker: Asker | None = None
    ) -> TrainingState:
        self.begun.append(next_key(state.key, plan))
        self._begin()
        return trained(state, plan)

    def test_accuracy(self, state: TrainingState) -> float:
        self.graded.append(state.key)
        self._begin()
        return state.best_checkpoint.weights.mean().item()

    def recall(self, key: str) -> TrainingState | None:
        return None

    def _begin(self) -> None:
        assert self.gate.wait(20), "the test never opened the gate"
        if self.failures:
            raise self.failures.pop(0)
