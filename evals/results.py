"""What records say, as numbers: one result an attempt, and statistics over the seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ml_trainer_env.agents import records
from ml_trainer_env.agents.catalogue import AGENTS
from ml_trainer_env.agents.records import Record
from ml_trainer_env.models import TASK_IDS, TaskId

RESAMPLES = 10_000
CONFIDENCE = 0.95


class Point(NamedTuple):
    """The best validation accuracy that the agent had after so many epochs in all."""

    epochs: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Result:
    """One attempt. Accuracies and gap are those of the graded checkpoint, None when untrained."""

    agent: str
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
    curve: tuple[Point, ...]

    @classmethod
    def of(cls, record: Record) -> Result:
        header, end = record.header, record.end
        return cls(
            agent=f"{header.agent} ({header.model})" if header.model else header.agent,
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
            curve=_curve(record),
        )


class Interval(NamedTuple):
    """Bounds of a mean."""

    low: float
    high: float

    def below(self, other: Interval) -> bool:
        return self.high < other.low


@dataclass(frozen=True, slots=True)
class Row:
    """An agent on a task, over its seeds."""

    agent: str
    task_id: TaskId
    results: tuple[Result, ...]

    @property
    def scores(self) -> list[float]:
        return [result.score for result in self.results]

    @property
    def interval(self) -> Interval:
        """95% of the mean score."""
        return bootstrap(self.scores)


def load(folder: Path) -> list[Result]:
    """The whole records below `folder`. Raises `BadRecord`."""
    return [Result.of(records.read(path)) for path in records.find(folder)]


def rows(results: Iterable[Result]) -> list[Row]:
    """By task, and within a task in the catalogue's order of agents."""
    found: defaultdict[tuple[TaskId, str], list[Result]] = defaultdict(list)
    for result in results:
        found[result.task_id, result.agent].append(result)
    order = sorted(found, key=lambda key: (TASK_IDS.index(key[0]), _rank(key[1])))
    return [
        Row(agent, task_id, tuple(sorted(found[task_id, agent], key=lambda r: r.seed)))
        for task_id, agent in order
    ]


def tasks(found: Sequence[Row]) -> list[TaskId]:
    """The tasks of these rows, easy first."""
    present = {row.task_id for row in found}
    return [task_id for task_id in TASK_IDS if task_id in present]


def bootstrap(values: Sequence[float]) -> Interval:
    """95% interval of the mean, by the percentiles of its resamples; always the same ones."""
    sample = np.asarray(values)
    chosen = np.random.default_rng(0).integers(0, len(sample), (RESAMPLES, len(sample)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(sample[chosen].mean(axis=1), (tail, 1 - tail))
    return Interval(float(low), float(high))


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that exist."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _rank(agent: str) -> tuple[int, str]:
    name = agent.split(" ")[0]
    names = list(AGENTS)
    return (names.index(name) if name in names else len(names)), agent


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
