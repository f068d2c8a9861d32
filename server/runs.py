"""A training run as a value: what is trained, how it began, and what came of every epoch so far.

Guarantees: it is small, holds no tensor and needs no torch, so servers, episodes and files deal in
runs. Its key is a hash of the workload, the seed, the engine and every plan so far: equal keys mean
equal bits, whatever calls led there. The tensors are a cache of it, for whoever trains.
"""

# pyright: strict

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ml_trainer_env.models import EpochPlan, EpochRecord

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained: part of every key, so a changed task version shares nothing with the old."""

    network: str
    dataset: str
    shards: int
    version: int


@dataclass(frozen=True, slots=True)
class Engine:
    """What trains. Equal fingerprints give equal bits."""

    fingerprint: str
    precision: Precision
    state_bytes: Mapping[str, int]  # what the tensors of a run weigh at most, by network


@dataclass(frozen=True, slots=True)
class Run:
    """A training run after `epoch` epochs."""

    key: str  # SHA-256 over the workload, seed, engine and every plan so far
    workload: Workload
    seed: int
    precision: Precision
    engine: str  # the fingerprint of what trains it
    history: tuple[EpochRecord, ...] = ()
    best: EpochRecord | None = None  # highest validation accuracy, the earliest on a tie

    @property
    def epoch(self) -> int:
        return len(self.history)

    def then(self, plan: EpochPlan) -> str:
        """The key after one more epoch with `plan`."""
        return next_key(self.key, plan)

    def after(self, record: EpochRecord) -> Run:
        """The run with one more epoch, of which this came."""
        best, accuracy = self.best, record.val_accuracy
        if accuracy is not None and (best is None or accuracy > (best.val_accuracy or 0.0)):
            best = record
        return replace(self, key=self.then(record.plan), history=(*self.history, record), best=best)

    def keys(self) -> list[str]:
        """Of the run after 0, 1, ... epochs; the last is its own."""
        keys = [_first(self.workload, self.seed, self.engine)]
        for record in self.history:
            keys.append(next_key(keys[-1], record.plan))
        return keys


def begin(workload: Workload, seed: int, engine: Engine) -> Run:
    """The untrained run."""
    key = _first(workload, seed, engine.fingerprint)
    return Run(key, workload, seed, engine.precision, engine.fingerprint)


def _first(workload: Workload, seed: int, fingerprint: str) -> str:
    return hashlib.sha256(f"{workload}|{seed}|{fingerprint}".encode()).hexdigest()


def next_key(key: str, plan: EpochPlan) -> str:
    """The key after one more epoch with `plan`: known before it is trained."""
    return hashlib.sha256(f"{key}|{plan.model_dump_json()}".encode()).hexdigest()
