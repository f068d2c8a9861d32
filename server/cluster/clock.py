"""Virtual seconds: what a step, a checkpoint and a restart cost. A usual step takes about one.

A step takes as long as its slowest rank, and then a ring all-reduce of the gradients (Patarasuk and
Yuan, 2009): 2 (R - 1) hops and 2 (R - 1) / R times their bytes through one link. Costs of what is
rare are in steps, as large jobs have them: a collective that hangs is given up after six, a restart
takes nine. Failures come far more often than on a real cluster, else there were none to see.
"""

# pyright: strict

from __future__ import annotations

from collections.abc import Sequence

SHARD = 0.2  # of forward and backward pass of one micro-shard
LOADER = 0.06  # of a rank's input pipeline, a step
HOP = 0.004
LINK = 0.064  # of all gradients through one link
JITTER = 0.04  # of a rank's work, at most, and at random

CHECKPOINT = 0.4
TIMEOUT = 6.0
RESTART = 9.0
RELOAD = 3.0  # of the input pipeline
SPARE = 20.0
DIAGNOSES = {
    "weight_checksum": 1.0,
    "flight_recorder": 0.5,
    "verify_checkpoint": 2.0,
    "shard_loss": 4.0,
    "replay": 0.0,  # the steps that it makes
}


def rank_seconds(loads: Sequence[float], slowdown: float, luck: float) -> float:
    """Of one rank's part of a step: `loads` of its micro-shards, 1 each unless they are slow.

    `luck` is in 0..1.
    """
    return (SHARD * sum(loads) * (1 + JITTER * luck) + LOADER) * slowdown


def reduce_seconds(ranks: int) -> float:
    """Of the all-reduce of a step."""
    return 2 * (ranks - 1) * HOP + 2 * (ranks - 1) / ranks * LINK
