"""What the micro-shards read: rows of the data shards, as the faults of the world have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce

import numpy as np
import torch

from ml_trainer_env.events import MICRO_SHARDS
from ml_trainer_env.server import datasets
from ml_trainer_env.server.cluster.networks import NETWORKS, Rows
from ml_trainer_env.server.cluster.sampler import rows_of
from ml_trainer_env.server.engine import resident
from ml_trainer_env.server.worlds import NetworkName, Reading, Sampler, World

PER_MICRO_SHARD: dict[NetworkName, int] = {"cluster_lm": 1, "cluster_cnn": 8}  # rows of a batch
VALIDATION: dict[NetworkName, int] = {"cluster_lm": 128, "cluster_cnn": 960}  # rows, of all


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Rows of each split; those of train lie in `MICRO_SHARDS` data shards of equal size."""

    train: Rows  # (16, n, ...)
    val: Rows  # (m, ...)
    test: Rows


@cache
def corpus(network: NetworkName) -> Corpus:
    """What this network learns from, loaded at the first call."""
    if network == "cluster_lm":
        text = datasets.load_text()
        arrays = map(torch.from_numpy, (text.train, text.val, text.test))
        splits = [Rows(rows[:, :-1], rows[:, 1:]) for rows in arrays]
    else:
        data = resident.resident("fashion_mnist")
        splits = [
            Rows(rows.images.contiguous(), rows.labels)
            for rows in (data.train, data.val, data.test)
        ]
    train, val, test = splits
    shards = Rows(*(_cut(each) for each in train))
    return Corpus(shards, _whole(val, VALIDATION[network]), _whole(test))


def _whole(rows: Rows, count: int | None = None) -> Rows:
    """The first `count`, as the networks take them: text lies in bytes until it is read."""
    inputs, targets = (each[:count] for each in rows)
    return Rows(inputs if inputs.is_floating_point() else inputs.long(), targets.long())


def _cut(rows: torch.Tensor) -> torch.Tensor:
    """In `MICRO_SHARDS` contiguous parts, without what is left."""
    each = len(rows) // MICRO_SHARDS
    return rows[: each * MICRO_SHARDS].unflatten(0, (MICRO_SHARDS, each))


def read(world: World, place: str, sampler: Sampler, shards: Sequence[int]) -> Rows:
    """What these micro-shards read at `sampler`, in their order; `place` names the draws."""
    return _stacked([_read(world, place, Reading(shard, sampler)) for shard in shards])


def _read(world: World, place: str, wanted: Reading) -> Rows:
    data, count = corpus(world.network).train, PER_MICRO_SHARD[world.network]
    rows = data.inputs.shape[1]
    found = reduce(lambda reading, fault: fault.reading(reading), world.faults, wanted)
    if any(fault.in_order(wanted) for fault in world.faults):
        positions = _in_order(world.network, wanted.shard)[
            np.arange(wanted.sampler.cursor * count, (wanted.sampler.cursor + 1) * count) % rows
        ]
    else:
        positions = rows_of(place, found.sampler, found.shard, count, rows)
    chosen = torch.from_numpy(positions)
    inputs, targets = _whole(Rows(*(each[found.shard][chosen] for each in data)))
    moved = sum(fault.mislabels(wanted) for fault in world.faults)
    if moved:
        targets = (targets + moved) % NETWORKS[world.network].classes
    return Rows(inputs, targets)


@cache
def _in_order(network: NetworkName, shard: int) -> np.ndarray:
    """The rows of a data shard sorted by their first target: by class, for images."""
    targets = corpus(network).train.targets[shard]
    keys = targets if targets.dim() == 1 else targets[:, 0]
    return np.argsort(keys.numpy(), kind="stable")


def _stacked(rows: Sequence[Rows]) -> Rows:
    return Rows(*(torch.stack(each) for each in zip(*rows, strict=True)))
