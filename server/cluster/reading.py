"""What the micro-shards read: rows of the data shards, as the faults of the world have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce

import numpy as np
import torch

from ml_trainer_env.events import MICRO_SHARDS
from ml_trainer_env.server import datasets
from ml_trainer_env.server.cluster.augmenting import augmented
from ml_trainer_env.server.cluster.networks import NETWORKS, Rows
from ml_trainer_env.server.cluster.sampler import rows_of
from ml_trainer_env.server.engine import resident
from ml_trainer_env.server.worlds import NetworkName, Reading, World

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
    return Corpus(shards, _whole(_spread(val, VALIDATION[network])), _whole(test))


def _spread(rows: Rows, count: int) -> Rows:
    """`count` of them, or all, evenly over the whole part: its beginning is one book of a text."""
    there = len(rows.inputs)
    taken = min(count, there)
    chosen = torch.arange(taken) * there // taken
    return Rows(*(each[chosen] for each in rows))


def _whole(rows: Rows) -> Rows:
    """As the networks take them: text lies in bytes until it is read."""
    inputs, targets = rows
    return Rows(inputs if inputs.is_floating_point() else inputs.long(), targets.long())


def _cut(rows: torch.Tensor) -> torch.Tensor:
    """In `MICRO_SHARDS` contiguous parts, without what is left."""
    each = len(rows) // MICRO_SHARDS
    return rows[: each * MICRO_SHARDS].unflatten(0, (MICRO_SHARDS, each))


def read(world: World, place: str, wanted: Sequence[Reading], augmentation: float = 0.0) -> Rows:
    """What micro-shards read that want these, in their order; `place` names the draws."""
    return _stacked([_read(world, place, each, augmentation) for each in wanted])


def _read(world: World, place: str, wanted: Reading, augmentation: float) -> Rows:
    """Faults of the sampler choose what is read, and then those of data go by it."""
    data, classes = corpus(world.network).train, NETWORKS[world.network].classes
    found = reduce(lambda reading, fault: fault.reading(reading), world.faults, wanted)
    sorts = any(fault.in_order(wanted) for fault in world.faults)
    chosen = torch.from_numpy(_positions(world.network, place, found, sorts))
    inputs, targets = _whole(Rows(*(each[found.shard][chosen] for each in data)))
    if moved := next(filter(None, (fault.mislabels(found) for fault in world.faults)), 0):
        targets = (targets + moved) % classes
    return Rows(augmented(inputs, place, found, augmentation, classes), targets)


def _positions(network: NetworkName, place: str, found: Reading, sorts: bool) -> np.ndarray:
    """Of the rows of a batch in their data shard."""
    shards, count = corpus(network).train.inputs, PER_MICRO_SHARD[network]
    rows = shards.shape[1]
    if not sorts:
        return rows_of(place, found.sampler, found.stream, count, rows)
    first = found.sampler.cursor * count
    return _in_order(network, found.shard)[np.arange(first, first + count) % rows]


@cache
def _in_order(network: NetworkName, shard: int) -> np.ndarray:
    """The rows of a data shard sorted by their first target: by class, for images."""
    targets = corpus(network).train.targets[shard]
    keys = targets if targets.dim() == 1 else targets[:, 0]
    return np.argsort(keys.numpy(), kind="stable")


def _stacked(rows: Sequence[Rows]) -> Rows:
    return Rows(*(torch.stack(each) for each in zip(*rows, strict=True)))
