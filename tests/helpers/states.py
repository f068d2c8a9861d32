"""Training states to test with: small ones that cost nothing, and real ones on little data."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from executors import PLAN, outcome
from executors import begin as begin_run

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server.engine.resident import Resident, Rows, resident
from ml_trainer_env.server.runtime.orders import record
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.trainer import Checkpoint, TrainingState, start

SIZE = 1000  # weights


def untrained(seed: int = 0) -> TrainingState:
    first = Checkpoint(torch.full((SIZE,), float(seed)), torch.zeros(7))
    return TrainingState(begin_run(seed), first, first)


def trained(
    state: TrainingState, plan: EpochPlan = PLAN, accuracy: float | None = None
) -> TrainingState:
    """Weights, moments and metrics that depend on all of the key; `accuracy` decides the best."""
    key = state.run.then(plan)
    came = record(state.run.epoch + 1, plan, outcome(key, plan))
    if accuracy is not None:
        came = came.model_copy(update={"val_accuracy": accuracy})
    run = state.run.after(came)
    drawn = torch.rand(4, SIZE, generator=torch.Generator().manual_seed(int(key[:12], 16)))
    reached = Checkpoint(drawn[0].clone(), drawn[1, :7].clone())
    return replace(
        state,
        run=run,
        current=reached,
        best_checkpoint=reached if run.best is came else state.best_checkpoint,
        optimizer=plan.optimizer,
        moments=(drawn[2].clone(), drawn[3].clone()),
        steps=state.steps + 1,
    )


def lineage(length: int, seed: int = 0) -> list[TrainingState]:
    """States one epoch apart, each better than the one before."""
    states = [untrained(seed)]
    for epoch in range(length):
        states.append(trained(states[-1], accuracy=(epoch + 1) / 100))
    return states[1:]


def value(state: object) -> tuple[Any, ...]:
    """All that the state of a network is, for comparing bit for bit."""
    assert isinstance(state, TrainingState)
    checkpoints = (state.current, state.best_checkpoint)
    tensors = [t for c in checkpoints for t in (c.weights, c.statistics)] + list(state.moments)
    fields = (state.key, state.run, state.optimizer, state.steps)
    return (*fields, *((t.dtype, t.shape, t.numpy().tobytes()) for t in tensors))


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
    return start(task.workload, seed)
