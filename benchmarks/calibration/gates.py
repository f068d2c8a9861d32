"""Which faults make tasks: what they cost, what the right remedy saves, and what others do.

    python benchmarks/calibration/gates.py                 # all families; the last line is JSON
    python benchmarks/calibration/gates.py desync crash    # some

A cluster is trained to the onset once, for faults before it have done nothing. From there each
family goes on twice: an operator does nothing, or looks three windows later and does one thing. The
hidden-test loss at the deadline is told in seconds: those of a healthy run that ends with it, by
healthy runs to other deadlines. 0 is doing nothing, 1 the best of all that was tried.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from rich.table import Table

from ml_trainer_env.events import (
    ConfigureData,
    ConfigureRanks,
    Event,
    Restore,
    Settings,
    Train,
)
from ml_trainer_env.server.cluster.networks import NETWORKS
from ml_trainer_env.server.cluster.reading import corpus
from ml_trainer_env.server.cluster.state import ClusterState, merged
from ml_trainer_env.server.cluster.training import advance, mean_loss, start
from ml_trainer_env.server.worlds import (
    AnyFault,
    BadBatches,
    BadResume,
    BitFlip,
    Corruption,
    Crash,
    Desync,
    PoisonedShards,
    SlowHost,
    SlowShard,
    World,
    WrongOrder,
    WrongRate,
)
from ml_trainer_env.terminal import stdout

DEADLINE = 1000.0  # seconds
ONSET = 450.0
WINDOWS = 3  # of doing nothing, before anybody looks
SETTINGS = Settings(learning_rate=0.006)
CORRECTED = SETTINGS.model_copy(update={"revision": 1})
DEADLINES = (500.0, 650.0, 800.0, 900.0, 950.0, DEADLINE)
BEFORE = 400  # step of a checkpoint before the onset
HEALTHY = World("gates", "cluster_lm", 4, DEADLINE)

Remedy = tuple[Event | Settings, ...]  # settings hold from there on
REMEDIES: dict[str, Remedy] = {
    "restore": (Restore(step=BEFORE),),
    "restore and skip": (Restore(step=BEFORE, skip_batches=100),),
    "set the rate": (CORRECTED,),
    "restore and set the rate": (Restore(step=BEFORE), CORRECTED),
    "lower the rate": (SETTINGS.model_copy(update={"learning_rate": 0.002, "revision": 1}),),
    "exclude rank 1": (ConfigureRanks(exclude=(1,)),),
    "restore and exclude rank 1": (Restore(step=BEFORE), ConfigureRanks(exclude=(1,))),
    "spare for rank 1": (ConfigureRanks(use_spare=(1,)),),
    "restore and spare for rank 1": (Restore(step=BEFORE), ConfigureRanks(use_spare=(1,))),
    "broadcast": (ConfigureRanks(),),
    "less work for rank 1": (ConfigureRanks(shares=(5, 2, 5, 4)),),
    "quarantine": (ConfigureData(quarantine=(5, 6)),),
    "restore and quarantine": (Restore(step=BEFORE), ConfigureData(quarantine=(5, 6))),
    "reshuffle": (ConfigureData(reshuffle=True),),
    "restore and reshuffle": (Restore(step=BEFORE), ConfigureData(reshuffle=True)),
    "shotgun": (
        Restore(step=BEFORE, skip_batches=100),
        ConfigureRanks(exclude=(1,)),
        ConfigureData(quarantine=(5, 6), reshuffle=True),
        CORRECTED,
    ),
}


class Family(NamedTuple):
    """Faults at the onset, the remedies that may be right, and one of what looks like it."""

    faults: tuple[AnyFault, ...]
    right: tuple[str, ...]
    twin: str = "restore"


def position(steps: int = 0) -> int:
    """The sampler's, so many steps after the onset."""
    return onset().sampler.cursor + steps


def families() -> dict[str, Family]:
    """One of each, of middling severity."""
    at = ONSET + 5
    return {
        "healthy": Family((), (), "restore"),
        "benign spike": Family((BadBatches(position(5), 1),), (), "restore and skip"),
        "bad batches": Family((BadBatches(position(5), 30),), ("restore and skip",), "restore"),
        "wrong rate": Family(
            (WrongRate(at=at, times=5),),
            ("set the rate", "restore and set the rate"),
            "restore and skip",
        ),
        "poisoned shards": Family(
            (PoisonedShards((5, 6), position(5)),),
            ("quarantine", "restore and quarantine"),
            "exclude rank 1",
        ),
        "sorted rows": Family(
            (WrongOrder(position(5), "sorted"),),
            ("reshuffle", "restore and reshuffle"),
            "lower the rate",
        ),
        "one shard for all": Family(
            (WrongOrder(position(5), "one_shard"),),
            ("reshuffle", "restore and reshuffle"),
            "lower the rate",
        ),
        "starts over": Family(
            (WrongOrder(position(5), "starts_over", 10),),
            ("reshuffle", "restore and reshuffle"),
            "lower the rate",
        ),
        "turned sign": Family(
            (Corruption(host=1, since=at, scale=-1.0),),
            ("exclude rank 1", "restore and exclude rank 1", "spare for rank 1"),
            "quarantine",
        ),
        "scaled gradients": Family(
            (Corruption(host=1, since=at, scale=30.0, chance=0.2),),
            ("exclude rank 1", "restore and exclude rank 1", "restore and spare for rank 1"),
            "lower the rate",
        ),
        "bit flip": Family((BitFlip(at=at, bit=30, share=0.5),), ("restore",), "exclude rank 1"),
        "desync": Family((Desync(at=at, host=1),), ("broadcast", "restore"), "quarantine"),
        "slow host": Family(
            (SlowHost(host=1, since=at, times=2.5),),
            ("spare for rank 1", "less work for rank 1", "exclude rank 1"),
            "restore",
        ),
        "mild slow host": Family((SlowHost(host=1, since=at, times=1.06),), (), "spare for rank 1"),
        "slow shard": Family(
            (SlowShard(shard=5, since=at, times=8),),
            ("quarantine", "less work for rank 1"),
            "spare for rank 1",
        ),
        "one crash": Family((Crash(at=at, host=1),), (), "exclude rank 1"),
        "crashes": Family(
            tuple(Crash(at=at + 40 * n, host=1) for n in range(10)),
            ("exclude rank 1", "spare for rank 1"),
            "restore",
        ),
        "dead host": Family(
            (Crash(at=at, host=1, dead=True),),
            ("spare for rank 1", "exclude rank 1"),
            "restore",
        ),
        "truncated checkpoint": Family(
            (BadResume(at=at, damage="truncated"),), ("restore",), "lower the rate"
        ),
        "old rate at a restart": Family(
            (BadResume(at=at, damage="old_rate", times=5),),
            ("set the rate", "restore and set the rate"),
            "restore",
        ),
    }


@cache
def onset() -> ClusterState:
    """A healthy run at the onset."""
    state = start(HEALTHY, 0)
    while state.seconds < ONSET:
        state, _ = advance(HEALTHY, 0, state, Train(settings=SETTINGS))
    return state


def finished(world: World, state: ClusterState, settings: Settings = SETTINGS) -> float:
    """The hidden-test loss at the deadline."""
    while state.seconds < world.deadline:
        state, _ = advance(world, 0, state, Train(settings=settings))
    return mean_loss(NETWORKS[world.network], merged(state), corpus(world.network).test)


def tried(world: World, state: ClusterState, remedy: Remedy) -> float:
    """The same after a remedy."""
    settings = SETTINGS
    for each in remedy:
        if isinstance(each, Settings):
            settings = each
        else:
            state, _ = advance(world, 0, state, each)
    return finished(world, state, settings)


@cache
def curve() -> list[tuple[float, float]]:
    """Deadlines of healthy runs, and the losses with which they end."""
    worlds = [replace(HEALTHY, deadline=deadline) for deadline in DEADLINES]
    return [(world.deadline, finished(world, start(world, 0))) for world in worlds]


def seconds(loss: float) -> float:
    """Of a healthy run that ends with it, between or beyond those of the curve."""
    ends, found = (np.array(each) for each in zip(*curve(), strict=True))
    order = np.argsort(found)
    if loss < found[-1]:  # a little beyond: by the slope of the end
        slope = (ends[-1] - ends[-2]) / (found[-1] - found[-2])
        return float(ends[-1] + slope * (loss - found[-1]))
    return float(np.interp(loss, found[order], ends[order]))


def measure(name: str, family: Family) -> dict[str, float | str]:
    """Seconds that a family costs, and the scores of remedies."""
    world = replace(HEALTHY, faults=family.faults)
    state = onset()
    for _ in range(WINDOWS):
        state, _ = advance(world, 0, state, Train(settings=SETTINGS))
    nothing = seconds(finished(world, state))
    wanted = dict.fromkeys((*family.right, family.twin, "shotgun"))
    told = {remedy: seconds(tried(world, state, REMEDIES[remedy])) for remedy in wanted}
    best = max(nothing, *told.values())
    gain = best - nothing

    def score(remedy: str) -> float:
        return float(np.clip((told[remedy] - nothing) / gain, -9.9, 1)) if gain > 0 else 0.0

    right = max(family.right, key=told.__getitem__, default="")
    return {
        "family": name,
        "costs_s": round(DEADLINE - nothing, 1),
        "gain_s": round(gain, 1),
        "right": right or "nothing",
        "right_score": round(score(right), 2) if right else 1.0,
        "twin": family.twin,
        "twin_score": round(score(family.twin), 2),
        "twin_s": round(told[family.twin] - nothing, 1),
        "shotgun_score": round(score("shotgun"), 2),
        "shotgun_s": round(told["shotgun"] - nothing, 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of families; default: all")
    names = parser.parse_args(argv).names
    torch.set_num_threads(1)
    known = families()
    found: list[dict[str, float | str]] = []
    table = Table("family", "costs", "gain", "right", "score", "twin", "score", "shotgun")
    for name in names or known:
        row = measure(name, known[name])
        print(json.dumps(row), flush=True)
        found.append(row)
        table.add_row(
            name,
            f"{row['costs_s']} s",
            f"{row['gain_s']} s",
            str(row["right"]),
            str(row["right_score"]),
            str(row["twin"]),
            f"{row['twin_score']} ({row['twin_s']} s)",
            f"{row['shotgun_score']} ({row['shotgun_s']} s)",
        )
    stdout(160).print(table)
    print(json.dumps({"benchmark": "gates", "curve": curve(), "families": found}))


if __name__ == "__main__":
    main()
