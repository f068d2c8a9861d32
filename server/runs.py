"""A training run as a value: what is trained, how it began, and what came of every epoch so far.

Guarantees: it is small, holds no tensor and needs no torch, so servers, episodes and files deal in
runs. Its key is a hash of the workload, the seed, the engine and every plan so far: equal keys mean
equal bits, whatever calls led there. The tensors are a cache of it, for whoever trains.
"""

# pyright: strict

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ml_trainer_env.events import Event
from ml_trainer_env.models import EpochPlan, EpochRecord
from ml_trainer_env.server.variations import Variation
from ml_trainer_env.server.worlds import World

Precision = Literal["fp32", "bf16"]
Plan = EpochPlan | Event  # of one epoch, or of one thing that happens to a cluster

NO_CREDIT_GAP = 0.15  # the generalisation gap at which it earns nothing
FULL_CREDIT_GAP = 0.05  # and below which it earns everything


@dataclass(frozen=True, slots=True)
class Scale:
    """What a checkpoint is worth; of a run's checkpoints the worthiest is kept, and graded.

    The accuracy is worth 0 at `low` and 1 at `high`. Where the generalisation gap counts, too, it
    is worth 0 at `NO_CREDIT_GAP` and 1 at `FULL_CREDIT_GAP`, as far as anything was learned: an
    untrained network has no gap either.
    """

    low: float
    high: float
    gap_weight: float = 0.0  # the accuracy has what is left to 1

    def accuracy(self, accuracy: float) -> float:
        """A, in 0..1."""
        return clip((accuracy - self.low) / (self.high - self.low))

    def learned(self, accuracy: float) -> float:
        """min(1, 2A)."""
        return min(1.0, 2.0 * self.accuracy(accuracy))

    def generalization(self, accuracy: float, gap: float) -> float:
        """G, in 0..1."""
        width = NO_CREDIT_GAP - FULL_CREDIT_GAP
        return clip((NO_CREDIT_GAP - gap) / width) * self.learned(accuracy)

    def worth(self, record: EpochRecord) -> tuple[float, float]:
        """What `record` is worth, and what decides between equals: the accuracy itself."""
        accuracy, gap = record.val_accuracy, record.gap
        if accuracy is None or gap is None:  # diverged
            return -1.0, -1.0
        by_gap = self.gap_weight and self.gap_weight * self.generalization(accuracy, gap)
        return (1 - self.gap_weight) * self.accuracy(accuracy) + by_gap, accuracy

    def better(self, best: EpochRecord | None, record: EpochRecord) -> EpochRecord | None:
        """The one that is kept of the two: the worthier, the earlier on a tie."""
        worth, least = self.worth(record), (-1.0, -1.0) if best is None else self.worth(best)
        return record if worth > least else best


def clip(value: float) -> float:
    """`value`, cut to 0..1."""
    return min(1.0, max(0.0, value))


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained: part of every key, so a changed task version shares nothing with the old."""

    network: str
    dataset: str
    shards: int
    version: int
    scale: Scale  # by which a run's checkpoint is chosen
    variation: Variation | None = field(default=None, repr=False)  # of an instance of a family
    world: World | None = field(default=None, repr=False)  # of a cluster

    def ends_with(self, record: EpochRecord) -> bool:
        """Whether nothing can be trained after it as things are: it diverged, or the deadline of a
        cluster has passed.
        """
        if self.world is None or record.window is None:
            return record.diverged
        return record.window.seconds >= self.world.deadline


@dataclass(frozen=True, slots=True)
class Engine:
    """What trains. Equal fingerprints give equal bits."""

    fingerprint: str
    precision: Precision
    state_bytes: Mapping[str, int]  # what the tensors of a run weigh at most, by network
    cluster: str = ""  # a digest of what clusters compute: of theirs alone the bits depend on it

    def trains(self, workload: Workload) -> str:
        """The fingerprint of what a run of `workload` depends on."""
        more = f" | cluster {self.cluster}" if workload.world else ""
        return f"{self.fingerprint}{more}"


@dataclass(frozen=True, slots=True)
class Run:
    """A training run after `epoch` epochs."""

    key: str  # SHA-256 over the workload, seed, engine and every plan so far
    workload: Workload
    seed: int
    precision: Precision
    engine: str  # the fingerprint of what trains it
    history: tuple[EpochRecord, ...] = ()
    best: EpochRecord | None = None  # the one that is kept, by the workload's scale

    @property
    def epoch(self) -> int:
        return len(self.history)

    @property
    def entropy(self) -> int:
        """Everything random about it is drawn from this: 32 bits."""
        variation = self.workload.variation
        return self.seed if variation is None else variation.entropy(self.seed)

    def then(self, plan: Plan) -> str:
        """The key after one more epoch with `plan`."""
        return next_key(self.key, plan)

    def after(self, record: EpochRecord) -> Run:
        """The run with one more epoch, of which this came."""
        best = self.workload.scale.better(self.best, record)
        return replace(self, key=self.then(record.plan), history=(*self.history, record), best=best)

    def keys(self) -> list[str]:
        """Of the run after 0, 1, ... epochs; the last is its own."""
        keys = [_first(self.workload, self.seed, self.engine)]
        for record in self.history:
            keys.append(next_key(keys[-1], record.plan))
        return keys


def begin(workload: Workload, seed: int, engine: Engine) -> Run:
    """The untrained run. That of a cluster is one run whatever the seed: its instance is graded by
    what was measured of that one.
    """
    seed = 0 if workload.world else seed
    fingerprint = engine.trains(workload)
    return Run(_first(workload, seed, fingerprint), workload, seed, engine.precision, fingerprint)


def _first(workload: Workload, seed: int, fingerprint: str) -> str:
    # That of a classic workload is what it was before there were others: files go by it.
    varied = f"|{workload.variation}" if workload.variation else ""
    varied += f"|{workload.world.canonical()}" if workload.world else ""
    return hashlib.sha256(f"{workload}|{seed}|{fingerprint}{varied}".encode()).hexdigest()


def next_key(key: str, plan: Plan) -> str:
    """The key after one more epoch with `plan`: known before it is trained."""
    return hashlib.sha256(f"{key}|{plan.model_dump_json()}".encode()).hexdigest()
