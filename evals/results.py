"""What records say, as numbers: one result an attempt, and statistics over the seeds.

Attempts are averaged only if they were made in the same way: by the same player, at the same
version of the task, on the same engine. A file that is no whole record is named and does not count.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import JsonValue

from ml_trainer_env.agents import records
from ml_trainer_env.agents.catalogue import AGENTS
from ml_trainer_env.agents.players import Player
from ml_trainer_env.agents.records import BadRecord, Record
from ml_trainer_env.task_ids import GROUPS, TaskId, group_of, instance_id
from ml_trainer_env.terminal import plain

RESAMPLES = 10_000
CONFIDENCE = 0.95
LONGEST = 60  # characters of one part of a label
OPERATORS_MEASURES = ("recovery", "restraint")  # what scores of clusters are of


class Point(NamedTuple):
    """The best validation accuracy that the agent had after so many epochs in all."""

    epochs: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Result:
    """One attempt. Accuracies and gap are those of the graded checkpoint, None when untrained."""

    player: Player
    task_id: TaskId
    task_version: int
    seed: int
    engine: str | None
    score: float
    episode_return: float
    seconds: float
    epochs: int
    max_epochs: int
    val_accuracy: float | None
    hidden_test_accuracy: float | None
    gap: float | None
    measure: str  # what the score is of: of a cluster recovery or restraint
    curve: tuple[Point, ...]

    @classmethod
    def of(cls, record: Record) -> Result:
        header, end = record.header, record.end
        return cls(
            player=header.player,
            task_id=header.task_id,
            task_version=header.task_version,
            seed=header.seed,
            engine=header.engine,
            score=end.grade.score,
            episode_return=end.episode_return,
            seconds=end.seconds,
            epochs=end.epochs,
            max_epochs=header.max_epochs,
            val_accuracy=end.grade.val_accuracy,
            hidden_test_accuracy=end.grade.hidden_test_accuracy,
            gap=end.grade.generalization_gap,
            measure=end.grade.components[0].name if end.grade.components else "",
            curve=_curve(record),
        )

    @property
    def way(self) -> Way:
        return Way(self.group, self.player.key, self.task_version, self.engine or "")

    @property
    def group(self) -> str:
        return group_of(self.task_id)


class Way(NamedTuple):
    """How an attempt was made, but for its seed; on an instance, but for its index, too."""

    group: str
    player: str
    task_version: int
    engine: str


class Interval(NamedTuple):
    """Bounds of a mean."""

    low: float
    high: float

    def below(self, other: Interval) -> bool:
        return self.high < other.low


@dataclass(frozen=True, slots=True)
class Row:
    """A player on a group of tasks, over them and the seeds.

    A group is one classic task, or a split of a family. The label says what tells it from others.
    """

    agent: str
    label: str
    group: str
    results: tuple[Result, ...]

    @property
    def scores(self) -> list[float]:
        return [result.score for result in self.results]

    @property
    def interval(self) -> Interval:
        """95% of the mean score. Seeds of one instance count as one: as their mean."""
        return bootstrap(_by_instance((r.task_id, r.score) for r in self.results))


class Measured(NamedTuple):
    """A mean over instances."""

    value: float
    interval: Interval


class Watched(NamedTuple):
    """An operator: whether it saves what can be saved, and leaves alone what is well.

    None where no instance of that kind was played; `both` needs both.
    """

    recovery: Measured | None
    restraint: Measured | None
    both: Measured | None  # their harmonic mean: always doing nothing has 0, and panic little


class Found(NamedTuple):
    """What a folder holds: the attempts, and of each other file why it does not count."""

    results: list[Result]
    refused: list[str]


def load(folder: Path) -> Found:
    """The records below `folder`; of copies of one record the first."""
    known: dict[bytes, Path] = {}
    found = Found([], [])
    for path in records.find(folder):
        try:
            record = records.read(path)
        except BadRecord as error:
            found.refused.append(str(error))
            continue
        content = hashlib.sha256(record.model_dump_json().encode()).digest()
        first = known.setdefault(content, path)
        if first == path:
            found.results.append(Result.of(record))
        else:
            found.refused.append(f"{path}: a copy of {first}")
    return found


def rows(results: Iterable[Result]) -> list[Row]:
    """By task, and within a task in the catalogue's order of agents."""
    found: defaultdict[Way, list[Result]] = defaultdict(list)
    for result in results:
        found[result.way].append(result)
    labels = _labels({way: of[0] for way, of in found.items()})
    made = [
        Row(of[0].player.agent, labels[way], way.group, tuple(sorted(of, key=_place)))
        for way, of in found.items()
    ]
    return sorted(made, key=lambda row: (GROUPS.index(row.group), *rank(row)))


def engines(results: Iterable[Result]) -> list[str]:
    """The fingerprints, in the order by which labels number them."""
    return sorted({result.engine or "unknown" for result in results})


def groups(found: Sequence[Row]) -> list[str]:
    """Of these rows, easy first."""
    present = {row.group for row in found}
    return [group for group in GROUPS if group in present]


def paired(lower: Row, higher: Row) -> list[float]:
    """By how much one scores above the other, task by task and seed by seed, where both did."""
    scores = {(r.task_id, r.seed): r.score for r in lower.results}
    return _by_instance(
        (r.task_id, r.score - scores[r.task_id, r.seed])
        for r in higher.results
        if (r.task_id, r.seed) in scores
    )


def _by_instance(values: Iterable[tuple[TaskId, float]]) -> list[float]:
    """The means over the seeds of each instance; of a classic task the values themselves."""
    of: defaultdict[TaskId, list[float]] = defaultdict(list)
    single: list[float] = []
    for task_id, value in values:
        (of[task_id] if instance_id(task_id) else single).append(value)
    return [*single, *(float(np.mean(each)) for each in of.values())]


def _place(result: Result) -> tuple[int, int]:
    of = instance_id(result.task_id)
    return of.index if of else 0, result.seed


def bootstrap(values: Sequence[float]) -> Interval:
    """95% interval of the mean, by the percentiles of its resamples; always the same ones."""
    return _bounds(_means(values))


def _means(values: Sequence[float]) -> list[float]:
    """Of resamples; always the same ones."""
    sample = np.asarray(values)
    chosen = np.random.default_rng(0).integers(0, len(sample), (RESAMPLES, len(sample)))
    return sample[chosen].mean(axis=1).tolist()


def _bounds(resampled: Sequence[float]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Interval(float(low), float(high))


def watched(row: Row) -> Watched:
    """Of a row of clusters."""
    recovery, restraint = (
        _by_instance((r.task_id, r.score) for r in row.results if r.measure == name)
        for name in OPERATORS_MEASURES
    )
    both = None
    if recovery and restraint:
        pairs = zip(*map(_means, (recovery, restraint)), strict=True)
        between = _bounds([_harmonic(*pair) for pair in pairs])
        both = Measured(_harmonic(float(np.mean(recovery)), float(np.mean(restraint))), between)
    return Watched(_measured(recovery), _measured(restraint), both)


def _measured(values: Sequence[float]) -> Measured | None:
    return Measured(float(np.mean(values)), bootstrap(values)) if values else None


def _harmonic(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other else 0.0


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that exist."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def rank(row: Row) -> tuple[int, str]:
    """Where it stands among the agents."""
    names = list(AGENTS)
    return (names.index(row.agent) if row.agent in names else len(names)), row.label


def _labels(examples: Mapping[Way, Result]) -> dict[Way, str]:
    """Agent and model, and of all else what differs between the ways of one agent on a task."""
    known = engines(examples.values())
    all_else = {
        way: dict[str, JsonValue](
            of.player.options
            | {"task version": of.task_version, "engine": known.index(of.engine or "unknown") + 1}
        )
        for way, of in examples.items()
    }
    labels: dict[Way, str] = {}
    taken = Counter[tuple[str, str]]()
    for way, of in examples.items():
        alike = [
            all_else[other]
            for other, example in examples.items()
            if (other.group, example.player.agent, example.player.model)
            == (way.group, of.player.agent, of.player.model)
        ]
        names = dict.fromkeys(name for each in alike for name in each)
        telling = [n for n in names if len({repr(each.get(n)) for each in alike}) > 1]
        parts = [of.player.model] if of.player.model else []
        parts += [f"{name} {all_else[way].get(name)}" for name in telling]
        shown = ", ".join(map(_plain, parts))
        label = _plain(of.player.agent) + (f" ({shown})" if shown else "")
        taken[way.group, label] += 1  # long names may begin alike
        copy = taken[way.group, label]
        labels[way] = label if copy == 1 else f"{label} #{copy}"
    return labels


def _plain(text: str) -> str:
    """`text` on one line, and no longer than is read; it comes from files."""
    shown = " ".join(plain(text).split())
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 3] + "..."


def _curve(record: Record) -> tuple[Point, ...]:
    """Over all sessions: what each epoch spent anywhere has brought."""
    points: list[Point] = []
    spent, best = 0, 0.0
    for call in record.calls:
        if call.status is None or not call.status.epochs_run:
            continue
        spent += call.status.epochs_run
        best = max(best, call.status.best_val_accuracy or 0.0)
        points.append(Point(spent, best))
    return tuple(points)
