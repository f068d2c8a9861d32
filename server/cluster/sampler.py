"""Which rows a step takes: data shard j feeds micro-shard j, in an order that was drawn before.

A pass over a shard is a permutation of its rows. The sampler is a position in the present order and
one in the stream; it is part of the state, so a checkpoint that is restored reads on where it was
written.
"""

# pyright: strict

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ml_trainer_env.server.draws import Draw
from ml_trainer_env.server.worlds import Sampler

Positions = NDArray[np.int64]


def rows_of(name: str, sampler: Sampler, shard: int, per_batch: int, rows: int) -> Positions:
    """The rows of data shard `shard`, which has `rows`, that its micro-shard reads next."""
    first = sampler.cursor * per_batch
    places = np.arange(first, first + per_batch)
    parts = [
        permutation(name, sampler.order, shard, int(number), rows)[
            places[places // rows == number] % rows
        ]
        for number in np.unique(places // rows)
    ]
    return np.concatenate(parts)


@lru_cache(maxsize=256)
def permutation(name: str, order: int, shard: int, number: int, rows: int) -> Positions:
    """Pass `number` over a shard."""
    seed = Draw(name).bits(f"order {order} of shard {shard}, pass {number}")
    return np.random.Generator(np.random.Philox(seed)).permutation(rows)
