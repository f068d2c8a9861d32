"""What befalls the cluster of an instance, and what would help: a pure function of its id.

Every choice is drawn from a hash of the instance's name and the choice's own name. A quarter of the
instances are healthy, 15% have something that is best left alone, half have one fault and a tenth
two. The rows of `train` and `validation` never have what is held out for half of `eval`: eight
ranks, and severities beyond theirs; nor any pair of faults that `eval` has.

A remedy is what somebody does who knows the fault: events, each at the first end of a window after
its time. Those of a fault are a small library: none is right by decree, the best one is measured
(`frozen/cluster.jsonl`), and any other that works scores as much.
"""

# pyright: strict

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ml_trainer_env.events import (
    MICRO_SHARDS,
    ConfigureData,
    ConfigureRanks,
    Event,
    Restore,
    Settings,
)
from ml_trainer_env.server.draws import Draw
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
from ml_trainer_env.task_ids import InstanceId

Kind = Literal["healthy", "quiet", "fault", "pair"]
Remedy = tuple[Event | Settings, ...]  # settings hold from there on

STEPS = 600  # of a healthy run to the deadline
WINDOWS = 24  # of it
STEP_SECONDS = {4: 1.014, 8: 0.652}  # by ranks, checkpoints included
BASE = Settings(learning_rate=0.01, warmup=0.3, clip=1.0)  # the best of 20 that were tried
CORRECTED = BASE.model_copy(update={"revision": 1})
NETWORK: NetworkName = "cluster_lm"
HIGHEST_BIT = 30  # of the exponent: lower ones are often lived with
LATER = 8  # steps after an onset, its remedy is due: by then the fault is there
ONSET = (0.4, 0.6)  # of the steps
SECOND_ONSET = (0.6, 0.75)  # of the second of a pair
HELD_OUT_FROM = 40  # of eval
MANY_RANKS_UNTIL = 60  # of eval, from there on; the others have held-out severities
SHARES: tuple[tuple[Kind, int], ...] = (("healthy", 5), ("quiet", 3), ("fault", 10), ("pair", 2))
BLOCK: tuple[Kind, ...] = tuple(kind for kind, count in SHARES for _ in range(count))


class Setting(NamedTuple):
    """Where and when a fault strikes."""

    draw: Draw
    ranks: int
    step: int  # of the onset
    beyond: bool  # whether the severity is one that is held out

    @property
    def seconds(self) -> float:
        """Of the onset, on the clock."""
        return round(self.step * STEP_SECONDS[self.ranks], 1)

    @property
    def host(self) -> int:
        return self.draw.whole("host", 0, self.ranks - 1)

    @property
    def checkpoint(self) -> int:
        """The step of the last one before the onset."""
        return (self.step - 2) // BASE.checkpoint_every * BASE.checkpoint_every

    def severity(self, usual: tuple[float, float], held_out: tuple[float, float]) -> float:
        return self.draw.log_uniform("severity", *(held_out if self.beyond else usual))

    def shards(self, count: int) -> tuple[int, ...]:
        """Data shards, drawn without putting back."""
        order = sorted(range(MICRO_SHARDS), key=lambda shard: self.draw.bits(f"shard {shard}"))
        return tuple(sorted(order[:count]))


class Trouble(NamedTuple):
    """Faults, and what may help against them; nothing, where nothing does."""

    faults: tuple[AnyFault, ...]
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A remedy and the time, in seconds, from which on it is applied, at the end of a window."""

    since: float
    does: Remedy


@dataclass(frozen=True, slots=True)
class Incident:
    """An instance of the cluster."""

    kind: Kind
    names: tuple[str, ...]  # of what is wrong
    world: World
    onsets: tuple[float, ...]  # seconds
    remedies: tuple[tuple[Scheduled, ...], ...]  # to choose from

    @property
    def step_seconds(self) -> float:
        return STEP_SECONDS[self.world.ranks]


def incident(of: InstanceId, candidate: int = 0) -> Incident:
    """The candidate of this number: the first that keeps what its kind promises is the instance."""
    draw = Draw(f"{of}#{candidate}")
    kind = _kind(of)
    held_out = of.split == "eval" and of.index >= HELD_OUT_FROM
    ranks = 8 if held_out and of.index < MANY_RANKS_UNTIL else 4
    beyond = held_out and of.index >= MANY_RANKS_UNTIL
    names = _names(draw, kind, eval=of.split == "eval")
    return made(f"{of}#{candidate}", kind, names, ranks, beyond)


def made(
    name: str, kind: Kind, names: tuple[str, ...], ranks: int = 4, beyond: bool = False
) -> Incident:
    """With these faults; where, when and how bad is drawn by `name`."""
    draw = Draw(name)
    troubles: list[Trouble] = []
    onsets: list[float] = []
    for number, each in enumerate(names):
        low, high = SECOND_ONSET if number else ONSET
        step = draw.whole(f"onset {number}", int(low * STEPS), int(high * STEPS))
        at = Setting(Draw(f"{name}|{each}"), ranks, step, beyond)
        onsets.append(at.seconds)
        troubles.append(TROUBLES[each](at))
    return Incident(
        kind=kind,
        names=names,
        world=World(
            name=name,
            network=NETWORK,
            ranks=ranks,
            deadline=round(STEPS * STEP_SECONDS[ranks], 1),
            faults=tuple(fault for each in troubles for fault in each.faults),
        ),
        onsets=tuple(onsets),
        remedies=_combined([round(at + LATER * STEP_SECONDS[ranks], 1) for at in onsets], troubles),
    )


def _kind(of: InstanceId) -> Kind:
    """Each block of twenty has the same shares, in an order of its own."""
    block, place = divmod(of.index, len(BLOCK))
    draw = Draw(f"{of.family}/{of.split} block {block}")
    order = sorted(range(len(BLOCK)), key=lambda number: draw.bits(str(number)))
    return BLOCK[order[place]]


def _names(draw: Draw, kind: Kind, *, eval: bool) -> tuple[str, ...]:
    match kind:
        case "healthy":
            return ()
        case "quiet":
            return (draw.one_of("quiet", QUIET),)
        case "fault":
            return (draw.one_of("fault", FAULTS),)
        case "pair":
            return draw.one_of("pair", EVAL_PAIRS if eval else PAIRS)


def _combined(times: list[float], troubles: list[Trouble]) -> tuple[tuple[Scheduled, ...], ...]:
    """Of one fault each of its remedies; of two, the first of each, at its time."""
    if len(troubles) == 1:
        return tuple((Scheduled(times[0], does),) for does in troubles[0].remedies)
    found = [
        Scheduled(at, each.remedies[0])
        for at, each in zip(times, troubles, strict=True)
        if each.remedies
    ]
    return (tuple(found),) if found else ()


# The faults -----------------------------------------------------------------------------------


def _spike(at: Setting) -> Trouble:
    return Trouble((BadBatches(at.step + 3, at.draw.whole("count", 1, 2)),))


def _mildly_slow(at: Setting) -> Trouble:
    return Trouble((SlowHost(at.host, at.seconds, at.severity((1.03, 1.06), (1.07, 1.09))),))


def _one_crash(at: Setting) -> Trouble:
    return Trouble((Crash(at.seconds, at.host),))


def _bad_batches(at: Setting) -> Trouble:
    count = round(at.severity((15, 35), (40, 60)))
    skip = at.step + 3 + count - at.checkpoint
    return Trouble(
        (BadBatches(at.step + 3, count),),
        ((Restore(step=at.checkpoint, skip_batches=skip),),),
    )


def _wrong_rate(at: Setting) -> Trouble:
    return Trouble(
        (WrongRate(at.seconds, at.severity((10, 20), (30, 50))),),
        ((CORRECTED,), (CORRECTED, Restore(step=at.checkpoint))),
    )


def _poisoned(at: Setting) -> Trouble:
    shards = at.shards(4 if at.beyond else at.draw.whole("count", 2, 3))
    out = ConfigureData(quarantine=shards)
    return Trouble(
        (PoisonedShards(shards, at.step + 3),),
        ((out,), (out, Restore(step=at.checkpoint))),
    )


def _sorted(at: Setting) -> Trouble:
    return _wrong_order(at, WrongOrder(at.step + 3, "sorted"))


def _starts_over(at: Setting) -> Trouble:
    period = round(at.severity((40, 80), (20, 30)))
    return _wrong_order(at, WrongOrder(at.step + 3, "starts_over", period))


def _wrong_order(at: Setting, fault: WrongOrder) -> Trouble:
    again = ConfigureData(reshuffle=True)
    return Trouble((fault,), ((again,), (again, Restore(step=at.checkpoint))))


def _turned_sign(at: Setting) -> Trouble:
    return _corruption(at, scale=-1.0, chance=at.draw.one_of("chance", (0.7, 1.0)))


def _scaled(at: Setting) -> Trouble:
    return _corruption(at, at.severity((8, 20), (30, 60)), at.draw.one_of("chance", (0.1, 0.2)))


def _corruption(at: Setting, scale: float, chance: float) -> Trouble:
    host = at.host
    spare = ConfigureRanks(use_spare=(host,))
    return Trouble(
        (Corruption(host, at.seconds, scale, chance),),
        (
            (spare,),
            (ConfigureRanks(exclude=(host,)),),
            (spare, Restore(step=at.checkpoint)),
        ),
    )


def _bit_flip(at: Setting) -> Trouble:
    flip = BitFlip(at.seconds, HIGHEST_BIT, at.draw.uniform("share"))
    return Trouble((flip,), ((Restore(step=at.checkpoint),),))


def _desync(at: Setting) -> Trouble:
    return Trouble(
        (Desync(at.seconds, at.host),),
        ((ConfigureRanks(),), (Restore(step=at.checkpoint),)),
    )


def _slow_host(at: Setting) -> Trouble:
    host = at.host
    return Trouble(
        (SlowHost(host, at.seconds, at.severity((1.7, 2.5), (3, 4))),),
        ((ConfigureRanks(use_spare=(host,)),), (ConfigureRanks(exclude=(host,)),)),
    )


def _slow_shard(at: Setting) -> Trouble:
    (shard,) = at.shards(1)
    return Trouble(
        (SlowShard(shard, at.seconds, at.severity((5, 8), (10, 12))),),
        ((ConfigureData(quarantine=(shard,)),),),
    )


def _crashes(at: Setting) -> Trouble:
    host, every = at.host, at.severity((25, 40), (15, 22)) * STEP_SECONDS[at.ranks]
    times = range(int((STEPS - at.step) * STEP_SECONDS[at.ranks] / every) + 1)
    return Trouble(
        tuple(Crash(round(at.seconds + every * n, 1), host) for n in times),
        ((ConfigureRanks(use_spare=(host,)),), (ConfigureRanks(exclude=(host,)),)),
    )


def _dead_host(at: Setting) -> Trouble:
    host = at.host
    return Trouble(
        (Crash(at.seconds, host, dead=True),),
        ((ConfigureRanks(use_spare=(host,)),), (ConfigureRanks(exclude=(host,)),)),
    )


def _truncated(at: Setting) -> Trouble:
    older = max(0, at.checkpoint - BASE.checkpoint_every)
    return Trouble((BadResume(at.seconds, "truncated"),), ((Restore(step=older),),))


def _old_rate(at: Setting) -> Trouble:
    return Trouble(
        (BadResume(at.seconds, "old_rate", at.severity((10, 20), (30, 50))),),
        ((CORRECTED,), (CORRECTED, Restore(step=at.checkpoint))),
    )


QUIET_TROUBLES: dict[str, Callable[[Setting], Trouble]] = {
    "benign spike": _spike,
    "mildly slow host": _mildly_slow,
    "one crash": _one_crash,
}
FAULT_TROUBLES: dict[str, Callable[[Setting], Trouble]] = {
    "bad batches": _bad_batches,
    "wrong rate": _wrong_rate,
    "poisoned shards": _poisoned,
    "sorted rows": _sorted,
    "sampler starts over": _starts_over,
    "turned sign": _turned_sign,
    "scaled gradients": _scaled,
    "bit flip": _bit_flip,
    "desync": _desync,
    "slow host": _slow_host,
    "slow shard": _slow_shard,
    "crash after crash": _crashes,
    "dead host": _dead_host,
    "truncated checkpoint": _truncated,
    "old rate after a move": _old_rate,
}
TROUBLES = QUIET_TROUBLES | FAULT_TROUBLES
QUIET = tuple(QUIET_TROUBLES)
FAULTS = tuple(FAULT_TROUBLES)
PAIRS = (
    ("slow host", "bad batches"),
    ("poisoned shards", "dead host"),
    ("turned sign", "slow shard"),
    ("one crash", "poisoned shards"),
)
EVAL_PAIRS = (
    ("desync", "poisoned shards"),
    ("slow host", "turned sign"),
    ("benign spike", "dead host"),
)
