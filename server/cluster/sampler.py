"""Which rows a step takes: data shard j feeds micro-shard j, in an order that was drawn before.
Where that one is out, the next one does, in another order: a step reads as much as it did.

A pass over a shard is a permutation of its rows. The sampler is a position in the present order and
one in the stream; it is part of the state, so a checkpoint that is restored reads on where it was
written.
"""

# pyright: strict

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ml_trainer_env.events import MICRO_SHARDS
from ml_trainer_env.server.draws import Draw
from ml_trainer_env.server.worlds import Sampler

Positions = NDArray[np.int64]


def feeding(quarantined: frozenset[int]) -> tuple[int, ...]:
    """Of each micro-shard the data shard that it reads: its own, or the next that is not out."""
    shards = range(MICRO_SHARDS)
    return tuple(
        next(shard for shard in (*shards[micro:], *shards[:micro]) if shard not in quarantined)
        for micro in shards
    )


def rows_of(name: str, sampler: Sampler, stream: str, per_batch: int, rows: int) -> Positions:
    """The rows of a data shard, which has `rows`, that are read next in its `stream`."""
    first = sampler.cursor * per_batch
    places = np.arange(first, first + per_batch)
    parts = [
        permutation(name, sampler.order, stream, int(number), rows)[
            places[places // rows == number] % rows
        ]
        for number in np.unique(places // rows)
    ]
    return np.concatenate(parts)


@lru_cache(maxsize=256)
def permutation(name: str, order: int, stream: str, number: int, rows: int) -> Positions:
    """Pass `number` over a shard."""
    seed = Draw(name).bits(f"order {order} of {stream}, pass {number}")
    return np.random.Generator(np.random.Philox(seed)).permutation(rows)
