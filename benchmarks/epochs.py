"""Seconds per epoch, evaluation included: the engine's and the usual way's, in alternating blocks.

Alternation makes noise of the machine hit both alike. A variant's training goes on from block to
block, after warm-up epochs that are not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, Self

from ml_trainer_env.benchmarks.flops import epoch_operations, multiply_adds
from ml_trainer_env.benchmarks.timing import Spread, seconds_of
from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import trainer
from ml_trainer_env.server.models_nn import NETWORKS
from ml_trainer_env.server.resident import resident
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.server.team import SERIAL, Team

AUGMENTATION = 0.5  # strength
WARM_UP = 2  # epochs of the engine, before the first that counts; 1 of the usual way


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
    seconds: dict[str, Spread]  # by variant: those of `_variants`, usual, usual_augmented
    val_accuracy: dict[str, float]  # engine, usual
    accuracy_epoch: int
    usual_threads: int

    def ratio(self, slower: str, faster: str) -> float:
        return self.seconds[slower].median / self.seconds[faster].median

    def operations_per_second(self, variant: str) -> float:
        return self.epoch_operations / self.seconds[variant].median


class UsualWay:
    """The process that trains in the usual way (`usual.py`)."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "ml_trainer_env.benchmarks.usual"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input ends it

    def train(self, task: Task, augmentation: float, epochs: int) -> dict[str, Any]:
        """Its answer; raises RuntimeError when the process has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"task": task.task_id, "augmentation": augmentation, "epochs": epochs}
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


def measure(task: Task, amount: Amount, team: Team, usual: UsualWay) -> TaskFigures:
    """All variants of one task."""
    variants = _variants(task, team)
    for variant in variants.values():
        variant.train(WARM_UP)
        variant.seconds.clear()
    plain = [usual.train(task, 0.0, 1)]
    augmented = []
    for _ in range(amount.blocks):
        for variant in variants.values():
            variant.train(amount.engine)
        plain.append(usual.train(task, 0.0, amount.usual))
        augmented.append(usual.train(task, AUGMENTATION, amount.usual))

    data, network = resident(task.dataset), NETWORKS[task.network]
    batch = variants["two_threads"].plan.batch_size
    trained = len(data.train.labels) // batch * batch
    history = variants["two_threads"].state.history
    accuracies = [a for answer in plain for a in answer["val_accuracy"]]
    epoch = min(len(accuracies), len(history))
    return TaskFigures(
        parameters=sum(p.size for p in network.parameters),
        multiply_adds=multiply_adds(network),
        epoch_operations=epoch_operations(
            network, trained, len(data.val.labels) + len(data.probe.labels)
        ),
        seconds={
            **{name: Spread.of(variant.seconds) for name, variant in variants.items()},
            "usual": Spread.of(_seconds(plain[1:])),
            "usual_augmented": Spread.of(_seconds(augmented)),
        },
        val_accuracy={
            "engine": history[epoch - 1].val_accuracy or 0.0,
            "usual": accuracies[epoch - 1],
        },
        accuracy_epoch=epoch,
        usual_threads=plain[0]["threads"],
    )


def _variants(task: Task, team: Team) -> dict[str, _Variant]:
    start = trainer.start(
        trainer.Workload(task.network, task.dataset, task.shards, task.version), seed=0
    )
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


def _seconds(answers: list[dict[str, Any]]) -> list[float]:
    return [seconds for answer in answers for seconds in answer["seconds"]]
