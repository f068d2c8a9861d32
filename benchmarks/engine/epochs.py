"""Seconds per epoch, evaluation included: the engine's and the usual way's, in alternating blocks.

Alternation makes noise of the machine hit both alike. A variant's training goes on from block to
block, after warm-up epochs that are not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, Self

from ml_trainer_env.benchmarks.engine.flops import epoch_operations, multiply_adds
from ml_trainer_env.benchmarks.timing import Spread, seconds_of
from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import trainer
from ml_trainer_env.server.engine.resident import resident
from ml_trainer_env.server.engine.team import SERIAL, Team
from ml_trainer_env.server.models_nn import NETWORKS
from ml_trainer_env.server.tasks import Task

AUGMENTATION = 0.5  # strength
COLLAPSED = 5.0  # times as long as on one thread: more threads than that are no training
WARM_UP = 2  # epochs of the engine, before the first that counts; 1 of the usual way

# The usual way's variants: on torch's default threads, and on one.
PLAIN = ("usual", "usual_one_thread")
AUGMENTED = ("usual_augmented", "usual_augmented_one_thread")
USUAL = PLAIN + AUGMENTED


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured of one task."""

    blocks: int
    engine: int  # epochs of each of the engine's variants in a block
    usual: int  # epochs of each of the usual way's variants in a block


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """What was measured of one task; `val_accuracy` is both ways' after the same epochs."""

    parameters: int
    multiply_adds: int  # of one image's forward pass
    epoch_operations: int
    seconds: dict[str, Spread]  # by variant: those of `_variants` and `USUAL`
    val_accuracy: dict[str, float]  # engine, usual
    accuracy_epoch: int
    usual_threads: int  # torch's default
    collapsed: tuple[str, ...]  # the usual way's variants that were given up; see `COLLAPSED`

    def ratio(self, slower: str, faster: str) -> float:
        return self.seconds[slower].median / self.seconds[faster].median

    def times_usual(self, *, augmented: bool) -> float:
        """How many times longer the usual way takes, on whichever threads it is faster.

        Its default threads can collapse, and a collapse is no speed to compare with.
        """
        ours, names = ("augmented", AUGMENTED) if augmented else ("two_threads", PLAIN)
        return min(self.ratio(name, ours) for name in names if name in self.seconds)

    def operations_per_second(self, variant: str) -> float:
        return self.epoch_operations / self.seconds[variant].median


class UsualWay:
    """A process that trains in the usual way (`usual.py`)."""

    def __init__(self, threads: int | None = None) -> None:
        """`threads`: OpenMP's; None leaves torch's default."""
        self._environment = dict(os.environ)
        if threads is not None:
            self._environment["OMP_NUM_THREADS"] = str(threads)

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "ml_trainer_env.benchmarks.engine.usual"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=self._environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input ends it

    def train(
        self, task: Task, augmentation: float, epochs: int, limit: float | None = None
    ) -> dict[str, Any]:
        """Its answer; `limit` is the most seconds that an epoch may take.

        Raises RuntimeError when the process has died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "task": task.task_id,
            "augmentation": augmentation,
            "epochs": epochs,
            "limit": limit,
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the process of the usual way ended; its error is above")
        return json.loads(answer)


@dataclass(slots=True)
class _Variant:
    """One training with the engine, and the seconds of its counted epochs."""

    state: trainer.TrainingState
    plan: EpochPlan
    team: Team
    seconds: list[float] = field(default_factory=list)

    def train(self, epochs: int) -> None:
        self.seconds += [seconds_of(self._epoch) for _ in range(epochs)]

    def _epoch(self) -> None:
        self.state = trainer.advance(self.state, self.plan, self.team)


def measure(
    task: Task, amount: Amount, team: Team, default: UsualWay, one_thread: UsualWay
) -> TaskFigures:
    """All variants of one task; the last two train in the usual way."""
    variants = _variants(task, team)
    usual = [_Usual(task, strength, one_thread, default) for strength in (0.0, AUGMENTATION)]
    for variant in variants.values():
        variant.train(WARM_UP)
        variant.seconds.clear()
    for _ in range(amount.blocks):
        for variant in variants.values():
            variant.train(amount.engine)
        for pair in usual:
            pair.train(amount.usual)

    seconds = {name: variant.seconds for name, variant in variants.items()}
    collapsed: list[str] = []
    for names, pair in zip((PLAIN, AUGMENTED), usual, strict=True):
        seconds |= zip(names, (pair.default_seconds, pair.one_thread_seconds), strict=True)
        collapsed += names[:1] if pair.collapsed else ()
    data, network = resident(task.workload.dataset), NETWORKS[task.workload.network]
    plain = variants["two_threads"]
    batch = plain.plan.batch_size
    trained = len(data.train.labels) // batch * batch
    evaluated = len(data.val.labels) + len(data.probe.labels)
    history, accuracies = plain.state.run.history, usual[0].val_accuracy
    epoch = min(len(accuracies), len(history))
    return TaskFigures(
        parameters=sum(p.size for p in network.parameters),
        multiply_adds=multiply_adds(network),
        epoch_operations=epoch_operations(network, trained, evaluated),
        seconds={name: Spread.of(samples) for name, samples in seconds.items() if samples},
        val_accuracy={
            "engine": history[epoch - 1].val_accuracy or 0.0,
            "usual": accuracies[epoch - 1],
        },
        accuracy_epoch=epoch,
        usual_threads=usual[0].default_threads,
        collapsed=tuple(collapsed),
    )


class _Usual:
    """One training in the usual way on one thread, and the same on the default threads."""

    def __init__(
        self, task: Task, strength: float, one_thread: UsualWay, default: UsualWay
    ) -> None:
        """Warms both up."""
        self._task, self._strength = task, strength
        self._one_thread, self._default = one_thread, default
        warm = one_thread.train(task, strength, 1)
        self.val_accuracy: list[float] = warm["val_accuracy"]
        self.one_thread_seconds: list[float] = []
        self.default_seconds: list[float] = []
        self._limit = COLLAPSED * warm["seconds"][0]
        first = default.train(task, strength, 1, self._limit)
        self.default_threads: int = first["threads"]
        self.collapsed: bool = first["collapsed"]

    def train(self, epochs: int) -> None:
        """A collapsed team is not asked again: its epochs have no end in sight."""
        answer = self._one_thread.train(self._task, self._strength, epochs)
        self.one_thread_seconds += answer["seconds"]
        self.val_accuracy += answer["val_accuracy"]
        if not self.collapsed:
            answer = self._default.train(self._task, self._strength, epochs, self._limit)
            self.default_seconds += answer["seconds"]
            self.collapsed = answer["collapsed"]


def _variants(task: Task, team: Team) -> dict[str, _Variant]:
    start = trainer.start(task.workload, seed=0)
    plain = EpochPlan(
        optimizer="adam",
        learning_rate=0.001,
        batch_size=64,
        weight_decay=0.0,
        dropout=0.0,
        augmentation=0.0,
    )
    augmented = plain.model_copy(update={"augmentation": AUGMENTATION})
    return {
        "two_threads": _Variant(start, plain, team),
        "one_thread": _Variant(start, plain, SERIAL),
        "augmented": _Variant(start, augmented, team),
    }
