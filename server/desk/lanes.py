"""What the history of a cluster tells, laid along its clock: who worked when, and what happened.

Pure functions of the records that an operator has seen: nothing of a fault is known here.
"""

# pyright: strict

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from ml_trainer_env.events import (
    ConfigureData,
    ConfigureRanks,
    Diagnose,
    RankReport,
    Restore,
    Settings,
    Train,
    WindowReport,
)
from ml_trainer_env.models import EpochRecord
from ml_trainer_env.server.desk import words

Kind = Literal["incident", "restore", "ranks", "data", "diagnose", "settings"]
State = Literal["out", "silent"]

SAID = {"clip": "gradient_clip"}  # options by the names that their tool has for them
UNSAID = {"revision"}


@dataclass(frozen=True, slots=True)
class Span:
    """A record, and its part of the clock in seconds."""

    start: float
    end: float
    record: EpochRecord

    @property
    def report(self) -> WindowReport:
        assert self.record.window is not None, "a cluster's records have windows"
        return self.record.window

    @property
    def trains(self) -> bool:
        return isinstance(self.record.plan, Train)


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened, or that the operator did."""

    seconds: float
    kind: Kind
    text: str
    finding: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Seconds in which a row, a rank or a data shard, had no part."""

    row: int
    start: float
    end: float
    state: State


def spans(history: Sequence[EpochRecord]) -> list[Span]:
    """Each from the end of the one before."""
    ends = [0.0, *(each.window.seconds if each.window else 0.0 for each in history)]
    return [Span(*each, record) for each, record in zip(pairwise(ends), history, strict=True)]


# Lanes --------------------------------------------------------------------------------------------

Row = list[float | None]
Measure = Callable[[RankReport, Sequence[RankReport]], float | None]


def slowness(along: Sequence[Span]) -> list[Row]:
    """Seconds a step of each rank, relative to the median of all."""
    known = [r.step_seconds for span in along for r in span.report.ranks if r.step_seconds]
    usual = median(known) if known else 1.0

    def relative(report: RankReport, _: Sequence[RankReport]) -> float | None:
        return None if report.step_seconds is None else report.step_seconds / usual

    return _rows(along, relative)


def loudness(along: Sequence[Span]) -> list[Row]:
    """How many times the gradient norm of each rank is that of the window's median, or the other
    way round: 1 or more.
    """

    def ratio(report: RankReport, ranks: Sequence[RankReport]) -> float | None:
        usual = _median([each.gradient_norm for each in ranks])
        if not report.gradient_norm or not usual:
            return None
        return max(report.gradient_norm / usual, usual / report.gradient_norm)

    return _rows(along, ratio)


def dissent(along: Sequence[Span]) -> list[Row]:
    """How far below the window's median is each rank's agreement with the others: 0 or more."""

    def below(report: RankReport, ranks: Sequence[RankReport]) -> float | None:
        usual = _median([each.agreement for each in ranks])
        if report.agreement is None or usual is None:
            return None
        return max(0.0, usual - report.agreement)

    return _rows(along, below)


def excess(along: Sequence[Span]) -> list[Row]:
    """How far above the window's median is the loss of each data shard, in nats: 0 or more."""
    found: list[Row] = []
    for shard in range(max((len(span.report.shard_losses) for span in along), default=0)):
        row: Row = []
        for span in along:
            losses = span.report.shard_losses
            loss, usual = (losses[shard] if losses else None), _median(losses)
            row.append(None if loss is None or usual is None else max(0.0, loss - usual))
        found.append(row)
    return found


def _rows(along: Sequence[Span], value: Measure) -> list[Row]:
    count = ranks(along)
    return [
        [
            value(span.report.ranks[rank], span.report.ranks) if span.report.ranks else None
            for span in along
        ]
        for rank in range(count)
    ]


def ranks(along: Sequence[Span]) -> int:
    """How many there are, those that are out included."""
    return max((len(span.report.ranks) for span in along), default=0)


def _median(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return median(known) if known else None


def absences(along: Sequence[Span]) -> list[Stretch]:
    """When ranks were out, or did not answer. Whoever is out is not waited for."""
    return _joined(
        Stretch(rank.rank, span.start, span.end, "out" if rank.rank in out else "silent")
        for span in along
        for out in [span.report.excluded]
        for rank in span.report.ranks
        if rank.rank in out or not rank.alive
    )


def quarantines(along: Sequence[Span]) -> list[Stretch]:
    """When data shards were out."""
    return _joined(
        Stretch(shard, span.start, span.end, "out")
        for span in along
        for shard in span.report.quarantined
    )


def _joined(stretches: Iterator[Stretch]) -> list[Stretch]:
    """Those that follow one another become one."""
    found: list[Stretch] = []
    last: dict[tuple[int, State], int] = {}
    for each in stretches:
        place = last.get((each.row, each.state))
        if place is not None and found[place].end == each.start:
            found[place] = Stretch(each.row, found[place].start, each.end, each.state)
        else:
            last[each.row, each.state] = len(found)
            found.append(each)
    return found


def fresh_hosts(along: Sequence[Span]) -> list[tuple[float, int]]:
    """When which rank got another host by its operator's will."""
    return [
        (span.end, rank)
        for span in along
        if isinstance(span.record.plan, ConfigureRanks)
        for rank in span.record.plan.use_spare
    ]


def checkpoints(along: Sequence[Span]) -> list[tuple[float, int]]:
    """When about each checkpoint was written, and its step."""
    found: list[tuple[float, int]] = []
    known: set[int] = {0}
    for span in along:
        kept = set(span.report.checkpoints)
        before = span.report.step - len(span.report.losses)
        if span.trains and span.report.losses:
            pace = (span.end - span.start) / len(span.report.losses)
            found += [
                (min(span.end, span.start + max(0, step - before) * pace), step)
                for step in sorted(kept - known)
            ]
        known = kept
    return found


# What happened ------------------------------------------------------------------------------------


def marks(along: Sequence[Span]) -> list[Mark]:
    """Incidents, at the end of their window, and what the operator did, at its beginning."""
    found: list[Mark] = []
    before = next((s.record.plan.settings for s in along if isinstance(s.record.plan, Train)), None)
    for span in along:
        plan = span.record.plan
        if isinstance(plan, Train):
            if before is not None and plan.settings != before:
                found.append(Mark(span.start, "settings", _changed(before, plan.settings)))
            before = plan.settings
            if span.report.incidents:
                found.append(Mark(span.end, "incident", words.counted(span.report.incidents)))
        else:
            found.append(_done(span))
    return sorted(found, key=lambda mark: mark.seconds)


def _done(span: Span) -> Mark:
    report = span.report
    match span.record.plan:
        case Restore() as plan:
            told = [*report.incidents] or [f"restored a checkpoint up to step {plan.step}"]
            told += [f"skipping {plan.skip_batches} batches"] if plan.skip_batches else []
            told += [] if plan.load_optimizer else ["without the optimizer's moments"]
            return Mark(span.start, "restore", ", ".join(told))
        case ConfigureRanks() as plan:
            told = [f"{_named('rank', plan.exclude)} out"] if plan.exclude else []
            told += [f"a fresh host for {_named('rank', plan.use_spare)}"] if plan.use_spare else []
            told += [f"shares {_list(plan.shares)}"] if plan.shares else []
            also = [*report.incidents]
            return Mark(span.start, "ranks", ", ".join(["process group restarted", *told, *also]))
        case ConfigureData() as plan:
            told = [f"{_named('shard', plan.quarantine)} out"] if plan.quarantine else []
            told += ["a new order"] if plan.reshuffle else []
            return Mark(span.start, "data", ", ".join(["loaders restarted", *told]))
        case Diagnose() as plan:
            return Mark(span.start, "diagnose", f"diagnosed: {plan.what}", report.finding)
        case _:
            raise AssertionError("a training is no action")


def _changed(before: Settings, after: Settings) -> str:
    old, new = before.model_dump(), after.model_dump()
    told = [
        f"{SAID.get(name, name)} {_shown(old, name)} → {_shown(new, name)}"
        for name in new
        if name not in UNSAID and old[name] != new[name]
    ]
    return ", ".join(told) or f"learning_rate {_shown(new, 'learning_rate')} set again"


def _shown(settings: Mapping[str, object], name: str) -> str:
    value = settings[name]
    return "off" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _named(what: str, numbers: Sequence[int]) -> str:
    """`rank 1`, `ranks 1, 2`."""
    return f"{what}{'s' if len(numbers) > 1 else ''} {_list(numbers)}"


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
