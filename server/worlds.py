"""What a cluster trains, and what goes wrong with it: plain values, part of the workload.

Each fault lies on an axis of its own. Those of data follow the stream of batches and go by what is
read: whoever reads a batch again meets them again, in whatever order. Those of hardware follow a
host and the clock: on another host, or at another time, they are not there. Those of the optimizer
change the state once and are part of it.
Whatever is drawn is drawn by name, so every fork of a run meets the same world.

A fault is part of a run's key and of no observation.
"""

# pyright: strict

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter

from ml_trainer_env.server.draws import Draw

NetworkName = Literal["cluster_lm", "cluster_cnn"]
Order = Literal["sorted", "one_shard", "starts_over"]
Damage = Literal["truncated", "old_rate"]


@dataclass(frozen=True, slots=True)
class Sampler:
    """Where reading stands, in the present order and in the stream of all batches."""

    cursor: int = 0  # batches of the present order that were read
    read: int = (
        0  # batches that were read in all, along this lineage: what was restored counts once
    )
    orders: tuple[int, ...] = ()  # `read` at each reshuffle

    @property
    def order(self) -> int:
        """The number of the present order."""
        return len(self.orders)

    def skipping(self, batches: int) -> Sampler:
        """A negative number goes back, in the same order."""
        return replace(self, cursor=self.cursor + batches, read=self.read + batches)

    def reshuffled(self) -> Sampler:
        """Another order, of which nothing was read."""
        return Sampler(0, self.read, (*self.orders, self.read))

    def resumed(self, written: Sampler) -> Sampler:
        """Where reading goes on from a checkpoint that was `written` there. Reshuffles are the
        operator's and stay: of an order that the checkpoint has not seen, nothing is read yet.
        """
        return written if written.orders == self.orders else Sampler(0, written.read, self.orders)


class Reading(NamedTuple):
    """What a micro-shard reads."""

    shard: int  # whose rows
    sampler: Sampler
    instead_of: int | None = None  # the data shard, where that is out

    @property
    def stream(self) -> str:
        """The name of the order in which it comes."""
        shard = f"shard {self.shard}"
        return shard if self.instead_of is None else f"{shard} instead of {self.instead_of}"

    @property
    def position(self) -> int:
        """In the stream of batches."""
        return self.sampler.read


@dataclass(frozen=True, slots=True)
class Fault:
    """By itself it does nothing: each kind says what is different with it."""

    def reading(self, reading: Reading) -> Reading:
        """What is read in the place of `reading`."""
        return reading

    def in_order(self, reading: Reading) -> bool:
        """Whether rows come as they lie, not as they were drawn, where `reading` is wanted."""
        return False

    def mislabels(self, reading: Reading) -> int:
        """By how much each target is moved on in its alphabet, of what is really read; 0: none is.

        The first fault that mislabels decides, so that two of them cannot cancel.
        """
        return 0

    def factor(self, host: int, seconds: float, draw: Draw, name: str) -> float:
        """Of the gradients that `host` contributes. What is drawn for it is drawn by `name`, which
        no other fault, host or step has.
        """
        return 1.0

    def slowdown(self, host: int, seconds: float) -> float:
        """Of everything that `host` does."""
        return 1.0

    def load(self, shard: int, seconds: float) -> float:
        """Of the work on what one data shard gives."""
        return 1.0


@dataclass(frozen=True, slots=True)
class BadBatches(Fault):
    """`count` batches in a row with the targets of others; one alone is a benign spike."""

    position: int
    count: int
    fault: Literal["bad_batches"] = field(default="bad_batches", kw_only=True)

    def mislabels(self, reading: Reading) -> int:
        here = self.position <= reading.position < self.position + self.count
        return 1 + reading.shard % 7 if here else 0


@dataclass(frozen=True, slots=True)
class PoisonedShards(Fault):
    """From a position on, the targets of these data shards are wrong in one consistent way."""

    shards: tuple[int, ...]
    position: int
    fault: Literal["poisoned_shards"] = field(default="poisoned_shards", kw_only=True)

    def mislabels(self, reading: Reading) -> int:
        return 5 if reading.position >= self.position and reading.shard in self.shards else 0


@dataclass(frozen=True, slots=True)
class WrongOrder(Fault):
    """From a position on, the sampler is broken, until somebody makes a new order.

    One that was made before the position does not ward it off: what breaks is the sampler. Whoever
    skips past the position first, and goes back later, has made it after.
    """

    position: int
    kind: Order
    period: int = 10  # batches, of a sampler that starts over and over
    fault: Literal["wrong_order"] = field(default="wrong_order", kw_only=True)

    def _broken(self, reading: Reading) -> bool:
        healed = any(at >= self.position for at in reading.sampler.orders)
        return reading.position >= self.position and not healed

    def in_order(self, reading: Reading) -> bool:
        return self.kind == "sorted" and self._broken(reading)

    def reading(self, reading: Reading) -> Reading:
        if not self._broken(reading):
            return reading
        if self.kind == "one_shard":
            return Reading(0, reading.sampler)
        if self.kind == "starts_over":
            past = reading.position - self.position
            return reading._replace(sampler=reading.sampler.skipping(past % self.period - past))
        return reading


@dataclass(frozen=True, slots=True)
class Corruption(Fault):
    """A host whose gradients are scaled, always or now and then; -1 turns their sign."""

    host: int
    since: float  # seconds
    scale: float
    chance: float = 1.0
    fault: Literal["corruption"] = field(default="corruption", kw_only=True)

    def factor(self, host: int, seconds: float, draw: Draw, name: str) -> float:
        if host != self.host or seconds < self.since:
            return 1.0
        return self.scale if draw.chance(name, self.chance) else 1.0


@dataclass(frozen=True, slots=True)
class SlowHost(Fault):
    """A host that takes longer for everything."""

    host: int
    since: float
    times: float
    fault: Literal["slow_host"] = field(default="slow_host", kw_only=True)

    def slowdown(self, host: int, seconds: float) -> float:
        return self.times if host == self.host and seconds >= self.since else 1.0


@dataclass(frozen=True, slots=True)
class SlowShard(Fault):
    """A data shard that takes longer, whoever works on it."""

    shard: int
    since: float
    times: float
    fault: Literal["slow_shard"] = field(default="slow_shard", kw_only=True)

    def load(self, shard: int, seconds: float) -> float:
        return self.times if shard == self.shard and seconds >= self.since else 1.0


@dataclass(frozen=True, slots=True)
class Strike(Fault):
    """It happens once, when the clock has reached its time."""

    at: float  # seconds


@dataclass(frozen=True, slots=True)
class WrongRate(Strike):
    """The rate is multiplied, until somebody sets it again; one that is wrong already, too."""

    times: float
    fault: Literal["wrong_rate"] = field(default="wrong_rate", kw_only=True)


@dataclass(frozen=True, slots=True)
class BitFlip(Strike):
    """One exponent bit of one weight, of all ranks."""

    bit: int  # 23 to 30
    share: float  # where in the vector, 0..1
    fault: Literal["bit_flip"] = field(default="bit_flip", kw_only=True)


@dataclass(frozen=True, slots=True)
class Desync(Strike):
    """A host misses every update from here on, until weights are broadcast."""

    host: int
    fault: Literal["desync"] = field(default="desync", kw_only=True)


@dataclass(frozen=True, slots=True)
class Crash(Strike):
    """A host's process dies; the job starts again from its latest checkpoint.

    A host that is `dead` does not come back: every step waits for it, in vain.
    """

    host: int
    dead: bool = False
    fault: Literal["crash"] = field(default="crash", kw_only=True)


@dataclass(frozen=True, slots=True)
class BadResume(Strike):
    """The job is moved: every rank has a new host, it starts again from its latest checkpoint, and
    something is wrong then.
    """

    damage: Damage
    times: float = 1.0  # of the rate, where the old one is loaded; as of a wrong rate
    fault: Literal["bad_resume"] = field(default="bad_resume", kw_only=True)


AnyFault = (
    BadBatches
    | PoisonedShards
    | WrongOrder
    | Corruption
    | SlowHost
    | SlowShard
    | WrongRate
    | BitFlip
    | Desync
    | Crash
    | BadResume
)


@dataclass(frozen=True, slots=True)
class World:
    """Everything random about a run is drawn from `name` and its seed."""

    name: str
    network: NetworkName
    ranks: int
    deadline: float  # seconds
    faults: tuple[Annotated[AnyFault, Field(discriminator="fault")], ...] = ()

    def canonical(self) -> str:
        """JSON that equal worlds have in common: 33 and 33.0 seconds are the same."""
        return _WORLD.dump_json(_WORLD.validate_json(_WORLD.dump_json(self))).decode()

    def draw(self, seed: int) -> Draw:
        """Whatever is drawn in a run of this seed."""
        return Draw(f"{self.name}|{seed}")


_WORLD = TypeAdapter(World)
