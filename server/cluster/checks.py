"""Why an event cannot be, told before anything is done; it needs no tensor.

What decides is in the last report, so whoever has the reports of a run finds what its engine finds.
"""

# pyright: strict

from __future__ import annotations

from dataclasses import dataclass

from ml_trainer_env.events import (
    MICRO_SHARDS,
    ConfigureData,
    ConfigureRanks,
    Event,
    Restore,
    WindowReport,
)
from ml_trainer_env.server.worlds import World

MOST_QUARANTINED = MICRO_SHARDS // 4


@dataclass(frozen=True, slots=True)
class Facts:
    """What it depends on; by default those of a cluster that has done nothing."""

    seconds: float = 0.0
    excluded: frozenset[int] = frozenset()  # ranks
    checkpoints: tuple[int, ...] = (0,)  # steps of those that are kept


def facts_of(report: WindowReport | None) -> Facts:
    """After the event of which this is the report; None: before the first."""
    if report is None:
        return Facts()
    return Facts(report.seconds, frozenset(report.excluded), report.checkpoints)


def check(world: World, facts: Facts, event: Event) -> str | None:
    """Why `event` cannot be: a line of ASCII with the field and what is allowed. None: it can."""
    if facts.seconds >= world.deadline:
        return f"the deadline of {world.deadline:g} s has passed: submit_model is what is left"
    match event:
        case Restore():
            return _restore(facts, event)
        case ConfigureRanks():
            return _ranks(world, facts, event)
        case ConfigureData():
            return _data(event)
        case _:
            return None


def _restore(facts: Facts, event: Restore) -> str | None:
    if event.step >= min(facts.checkpoints):
        return None
    kept = ", ".join(map(str, facts.checkpoints))
    return f"step: no checkpoint up to step {event.step} is kept; those kept are of steps {kept}"


def _ranks(world: World, facts: Facts, event: ConfigureRanks) -> str | None:
    for field, ranks in (("exclude", event.exclude), ("use_spare", event.use_spare)):
        if unknown := sorted(rank for rank in ranks if not 0 <= rank < world.ranks):
            return f"{field}: there is no rank {unknown[0]}; ranks are 0 to {world.ranks - 1}"
    excluded, most = len(set(event.exclude)), (world.ranks - 1) // 2
    if excluded > most:
        return (
            f"exclude: more than half of the {world.ranks} ranks must work, so {most} can be out "
            f"at most; got {excluded}"
        )
    return None if event.shares is None else _shares(event.shares, world.ranks - excluded)


def _shares(shares: tuple[int, ...], working: int) -> str | None:
    if len(shares) != working:
        return (
            f"shares: a number is needed for each of {working} ranks that work; got {len(shares)}"
        )
    if min(shares) < 1:
        return f"shares: every rank works on one micro-shard at least; got {min(shares)}"
    if sum(shares) != MICRO_SHARDS:
        return f"shares: they add up to the {MICRO_SHARDS} micro-shards; got {sum(shares)}"
    return None


def _data(event: ConfigureData) -> str | None:
    quarantined = len(set(event.quarantine))
    if quarantined <= MOST_QUARANTINED:
        return None
    return (
        f"quarantine_shards: {MOST_QUARANTINED} of the {MICRO_SHARDS} data shards can be out at "
        f"most; got {quarantined}"
    )
