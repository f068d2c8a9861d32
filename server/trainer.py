"""The training engine: `advance(state, plan)`, a pure function of values.

The same state and the same plan give the same bits, in any process, in any order, beside any other
work, on one thread or on two. No DataLoader, no global generator, no global state: the data set
lies in memory as one tensor, all randomness is derived from (seed, epoch), and what a step
computes is fixed by the workload's number of shards, not by the threads that happen to run it.

The engine knows no task, no reward and no session.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ml_trainer_env.models import EpochPlan, EpochRecord
from ml_trainer_env.server import models_nn, models_varied, runs
from ml_trainer_env.server.cluster import networks
from ml_trainer_env.server.cluster.state import most_bytes
from ml_trainer_env.server.data.canon import CANON
from ml_trainer_env.server.engine import evaluation, malloc, modes
from ml_trainer_env.server.engine.evaluation import Score
from ml_trainer_env.server.engine.fingerprint import engine_fingerprint
from ml_trainer_env.server.engine.inputs import EpochInputs, InputRows
from ml_trainer_env.server.engine.optimizers import MOMENTS, update
from ml_trainer_env.server.engine.resident import Resident, Rows
from ml_trainer_env.server.engine.team import SERIAL, Team
from ml_trainer_env.server.engine.varied import data_of
from ml_trainer_env.server.models_nn import NETWORKS, Network, Replica, ShardResult
from ml_trainer_env.server.runs import Engine, Precision, Run, Workload

ALIGNMENT = 16  # floats; slices of the parameter vector start on a 64-byte line
FLOAT = 4  # bytes
STEPS_AHEAD = 8  # steps whose inputs one shard's networks prepare at a time
EXPLODED = 10 * math.log(models_nn.CLASSES)  # nats: ten times the loss of guessing


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Weights (P,) and batch-norm statistics (Q,). Never written to."""

    weights: Tensor
    statistics: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TrainingState:
    """The tensors of a run, where it stands; equal keys mean equal bits."""

    run: Run
    current: Checkpoint
    best_checkpoint: Checkpoint  # of `run.best`; the initial one before that
    optimizer: str | None = None  # whose moments these are; None: fresh
    moments: tuple[Tensor, ...] = ()  # each (P,)
    steps: int = 0  # taken with these moments

    @property
    def key(self) -> str:
        return self.run.key


def engine(precision: Precision = "fp32") -> Engine:
    """What trains here, in this process. Raises ValueError for a precision that cannot be had."""
    known = NETWORKS | models_varied.HEAVIEST
    heaviest = {name: _most_bytes(network) for name, network in known.items()}
    heaviest |= {name: most_bytes(network) for name, network in networks.NETWORKS.items()}
    return Engine(engine_fingerprint(precision), precision, heaviest, networks.measured())


def network_of(workload: Workload) -> Network:
    """What a run of `workload` trains."""
    variation = workload.variation
    if variation is None:
        return NETWORKS[workload.network]
    channels, height, width = CANON[workload.dataset].image_shape
    image = channels, height // variation.pooling, width // variation.pooling
    return models_varied.network(variation.shape, image, variation.multiplier)


def start(workload: Workload, seed: int, precision: Precision = "fp32") -> TrainingState:
    """An untrained network. Cheap: needs no data."""
    return untrained(runs.begin(workload, seed, engine(precision)))


def untrained(run: Run) -> TrainingState:
    """The tensors of `run` before its first epoch."""
    network = network_of(run.workload)
    generator = torch.Generator().manual_seed(run.entropy)
    with modes.of_the_engine(), modes.of_a_computation(run.precision):
        initial = Checkpoint(
            models_nn.initial_weights(network, generator), models_nn.initial_statistics(network)
        )
    return TrainingState(run, initial, initial)


def advance(state: TrainingState, plan: EpochPlan, team: Team = SERIAL) -> TrainingState:
    """One epoch of training and its evaluation.

    A diverged epoch (a loss that is not finite or above `EXPLODED`) is recorded without metrics,
    and leaves the run at its best checkpoint with fresh moments, ready to go on.
    """
    before = state.run
    # The parts of a step enter the modes of the run's precision.
    with modes.of_the_engine(), modes.of_a_computation("fp32"):
        data = data_of(before.workload)
        work = _Run.resume(state, plan)
        train = work.train_epoch(data, plan, before.entropy, before.epoch, team)
        reached = Checkpoint(work.weights, work.mean_statistics())
        val, clean = _evaluate(state, reached, (data.val, data.probe), team)
    healthy = all(math.isfinite(x) and x <= EXPLODED for x in (train.loss, val.loss, clean.loss))
    record = EpochRecord(
        epoch=before.epoch + 1,
        plan=plan,
        train_loss=train.loss if healthy else None,
        train_accuracy=train.accuracy if healthy else None,
        val_loss=val.loss if healthy else None,
        val_accuracy=val.accuracy if healthy else None,
        clean_train_loss=clean.loss if healthy else None,
        clean_train_accuracy=clean.accuracy if healthy else None,
    )
    after = before.after(record)
    best = reached if after.best is record else state.best_checkpoint
    if not healthy:
        return TrainingState(after, best, best)
    return TrainingState(after, reached, best, plan.optimizer, work.moments, work.steps)


def test_accuracy(state: TrainingState, team: Team = SERIAL) -> float:
    """Hidden-test accuracy of the best checkpoint, for grading alone."""
    with modes.of_the_engine(), modes.of_a_computation("fp32"):
        test = data_of(state.run.workload).test
        return _evaluate(state, state.best_checkpoint, (test,), team)[0].accuracy


def _most_bytes(network: Network) -> int:
    """What the tensors of a state weigh at most: two checkpoints and the moments."""
    weights = sum(p.size for p in network.parameters)
    statistics = len(models_nn.initial_statistics(network))
    return FLOAT * ((2 + max(MOMENTS.values())) * weights + 2 * statistics)


def configure_process() -> None:
    """Once, at the start of a process that trains: memory settings that make steps faster."""
    malloc.keep_freed()


def _evaluate(
    state: TrainingState, checkpoint: Checkpoint, splits: Sequence[Rows], team: Team
) -> list[Score]:
    network = network_of(state.run.workload)
    replica = network.replica(checkpoint.weights, checkpoint.statistics)

    def logits(images: Tensor) -> Tensor:
        with modes.of_a_computation(state.run.precision):
            return replica.logits(images)

    return evaluation.evaluate(logits, splits, network.evaluation_chunk, team)


@dataclass(slots=True)
class _Run:
    """The mutable inside of one call of `advance`; all its tensors are its own copies."""

    workload: Workload
    precision: Precision
    network: Network
    weights: Tensor  # (P,)
    statistics: list[Tensor]  # one (Q,) for each shard
    replicas: list[Replica]  # one for each shard, over the same weights
    moments: tuple[Tensor, ...]  # each (P,)
    parts: list[_Part]  # of weights and moments
    steps: int

    @classmethod
    def resume(cls, state: TrainingState, plan: EpochPlan) -> _Run:
        network = network_of(state.run.workload)
        weights = state.current.weights.clone()
        statistics = [state.current.statistics.clone() for _ in range(state.run.workload.shards)]
        if state.optimizer == plan.optimizer:
            moments, steps = tuple(m.clone() for m in state.moments), state.steps
        else:
            moments = tuple(torch.zeros_like(weights) for _ in range(MOMENTS[plan.optimizer]))
            steps = 0
        return cls(
            workload=state.run.workload,
            precision=state.run.precision,
            network=network,
            weights=weights,
            statistics=statistics,
            replicas=[network.replica(weights, s) for s in statistics],
            moments=moments,
            parts=_cut(
                [p.size for p in network.parameters], weights, moments, state.run.workload.shards
            ),
            steps=steps,
        )

    def mean_statistics(self) -> Tensor:
        """One set of running statistics: a mean of running means is the running mean of means."""
        return torch.stack(self.statistics).mean(0)

    def train_epoch(
        self, data: Resident, plan: EpochPlan, seed: int, epoch: int, team: Team
    ) -> Score:
        """All full batches of a fresh permutation; mean loss and accuracy as it went."""
        units = self.network.dropout_units
        images = self.workload.dataset.partition("/")[0]
        inputs = EpochInputs.draw(data, plan, images, seed, epoch, units)
        logits: list[Tensor] = []  # kept for the whole epoch; the gradients must not be
        for shards in self._steps(inputs, plan.batch_size, team):
            results = team.map(partial(self._differentiate, plan), shards)
            self._step(plan, [r.gradients for r in results], team)
            logits += [r.logits for r in results]
        seen = torch.cat(logits)
        return evaluation.score(seen, inputs.labels[: len(seen)])

    def _steps(self, inputs: EpochInputs, batch: int, team: Team) -> Iterator[list[_Shard]]:
        """The shards of each step, with what makes their inputs.

        Each shard's own thread makes them. But a single shard leaves the other threads idle, so
        they make those of the next steps ahead; on one thread, several steps at once cost less.
        """
        used = len(inputs) // batch * batch
        count = self.workload.shards

        def rows(bounds: tuple[int, int]) -> InputRows:
            with modes.of_a_computation(
                "fp32"
            ):  # in bf16 an augmented image would be off by a share of a pixel
                return inputs.rows(*bounds)

        if count > 1:
            part = batch // count
            for first in range(0, used, batch):
                bounds = [(first + k * part, first + (k + 1) * part) for k in range(count)]
                yield [_Shard(k, partial(rows, b)) for k, b in enumerate(bounds)]
            return
        block = STEPS_AHEAD * batch
        blocks = [(first, min(first + block, used)) for first in range(0, used, block)]
        for block_rows in team.ahead(rows, blocks):
            for first in range(0, len(block_rows.labels), batch):
                yield [_Shard(0, partial(block_rows.part, first, first + batch))]

    def _differentiate(self, plan: EpochPlan, shard: _Shard) -> ShardResult:
        with modes.of_a_computation(self.precision):
            rows = shard.make_inputs()
            replica = self.replicas[shard.number]
            return replica.gradient(rows.images, rows.labels, rows.masks, plan.batch_size)

    def _step(self, plan: EpochPlan, gradients: list[tuple[Tensor, ...]], team: Team) -> None:
        """Add the shards' gradients in their order and step, part by part of the vector."""

        def step(part: _Part) -> None:
            total = part.of(gradients[0])
            for other in gradients[1:]:
                torch._foreach_add_(total, part.of(other))  # pyright: ignore[reportPrivateImportUsage]
            update(plan, part.weights, total, part.moments, self.steps)

        team.map(step, self.parts)
        self.steps += 1


@dataclass(frozen=True, slots=True)
class _Part:
    """A contiguous part of the vector, parameter by parameter, with views of what a step changes.

    How the vector is cut depends on the workload alone, never on the threads.
    """

    places: list[tuple[int, slice | None]]  # a parameter's number, and the slice if not all of it
    weights: list[Tensor]
    moments: list[list[Tensor]]

    def of(self, gradients: tuple[Tensor, ...]) -> list[Tensor]:
        return [gradients[n] if cut is None else gradients[n][cut] for n, cut in self.places]


def _cut(
    sizes: Sequence[int], weights: Tensor, moments: Sequence[Tensor], count: int
) -> list[_Part]:
    """The vector in `count` contiguous parts of about equal size."""
    width = -(-len(weights) // (count * ALIGNMENT)) * ALIGNMENT
    parts = [_Part([], [], [[] for _ in moments]) for _ in range(count)]
    begin = 0
    for number, size in enumerate(sizes):
        first = begin
        while first < begin + size:
            part = parts[first // width]
            last = min(begin + size, (first // width + 1) * width)
            whole = last - first == size
            part.places.append((number, None if whole else slice(first - begin, last - begin)))
            part.weights.append(weights[first:last])
            for views, moment in zip(part.moments, moments, strict=True):
                views.append(moment[first:last])
            first = last
        begin += size
    return parts


class _Shard(NamedTuple):
    number: int
    make_inputs: Callable[[], InputRows]
