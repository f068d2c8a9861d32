"""The faults that a visitor chooses by plain names. All begin early, so that a short show has them.

They lie on different hosts where there are four, and each is told at the start: nobody is tested.
"""

# pyright: strict

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ml_trainer_env.events import MICRO_SHARDS, WINDOW
from ml_trainer_env.server.cluster import clock
from ml_trainer_env.server.worlds import (
    AnyFault,
    BadBatches,
    BadResume,
    BitFlip,
    Corruption,
    Crash,
    Desync,
    NetworkName,
    PoisonedShards,
    SlowHost,
    SlowShard,
    World,
    WrongOrder,
    WrongRate,
)


class _Stage(NamedTuple):
    """Where faults are put."""

    ranks: int
    step: float  # virtual seconds of a usual one

    def host(self, wanted: int) -> int:
        return wanted % self.ranks

    def at(self, steps: int) -> float:
        return round(steps * self.step, 1)


@dataclass(frozen=True, slots=True)
class _Fault:
    told: str  # what a visitor will see
    on: Callable[[_Stage], AnyFault]


_FAULTS: dict[str, _Fault] = {
    "crash": _Fault(
        "a host's process dies, and the job starts again from its latest checkpoint",
        lambda stage: Crash(at=stage.at(14), host=stage.host(2)),
    ),
    "dead": _Fault(
        "a host dies for good: the next step waits for it in vain",
        lambda stage: Crash(at=stage.at(22), host=stage.host(3), dead=True),
    ),
    "slow": _Fault(
        "a host takes twice as long, and all others wait for it",
        lambda stage: SlowHost(host=stage.host(1), since=stage.at(35), times=2.0),
    ),
    "slow-shard": _Fault(
        "the work on one micro-shard takes three times as long, whoever does it",
        lambda stage: SlowShard(shard=0, since=stage.at(35), times=3.0),
    ),
    "turned-sign": _Fault(
        "a host's gradients have the wrong sign: its agreement falls below zero",
        lambda stage: Corruption(host=stage.host(0), since=stage.at(30), scale=-1.0),
    ),
    "desync": _Fault(
        "a host misses every update from here on, and computes with old weights",
        lambda stage: Desync(at=stage.at(18), host=stage.host(3)),
    ),
    "bit-flip": _Fault(
        "one exponent bit of one weight turns, and the weight is huge from here on",
        lambda stage: BitFlip(at=stage.at(34), bit=30, share=0.4),
    ),
    "truncated-checkpoint": _Fault(
        "the job is moved to other hosts, and starts from a checkpoint that ends in the middle",
        lambda stage: BadResume(at=stage.at(38), damage="truncated"),
    ),
    "poisoned-shard": _Fault(
        "the targets of one data shard are wrong from here on: its loss stays high",
        lambda stage: PoisonedShards(shards=(5,), position=20),
    ),
    "bad-batches": _Fault(
        "a few batches in a row have the targets of others",
        lambda stage: BadBatches(position=30, count=5),
    ),
    "wrong-order": _Fault(
        "the sampler gives the same ten batches over and over",
        lambda stage: WrongOrder(position=20, kind="starts_over"),
    ),
    "wrong-rate": _Fault(
        "the learning rate is ten times what it should be",
        lambda stage: WrongRate(at=stage.at(30), times=10.0),
    ),
}

FAULTS = tuple(_FAULTS)
NO_FAULT = "none"


def told(name: str) -> str:
    """What a visitor will see of it."""
    return _FAULTS[name].told


def world(
    network: NetworkName, ranks: int, windows: int, names: Sequence[str], *, slack: float = 2.0
) -> World:
    """With these faults. Its deadline leaves time for what they cost: a show is no race."""
    usual = clock.rank_seconds([1.0] * -(-MICRO_SHARDS // ranks), 1.0, 0.5)
    stage = _Stage(ranks, usual + clock.reduce_seconds(ranks))
    rare = clock.TIMEOUT + clock.RESTART + clock.SPARE
    deadline = slack * windows * WINDOW * stage.step + rare * (1 + len(names))
    found = tuple(_FAULTS[name].on(stage) for name in names)
    return World("show", network, ranks, round(deadline), found)
