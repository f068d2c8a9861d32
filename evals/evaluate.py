"""Agents x tasks x seeds, each attempt on record, several at a time, and resumable.

What is on record in the folder already is not played again, if it was played in the same way: by
the same player, at the same version of the task, on the same engine. A record that was made in
another way stays where it is, beside the new one. An attempt that fails is reported and leaves the
others alone. Interrupted, attempts stop at their next answer and leave no whole record, so the same
command goes on where it stopped. Two evaluations may share a folder: an attempt is played by one of
them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ml_trainer_env.agents import catalogue, records
from ml_trainer_env.agents.attempt import Attempt, Observer
from ml_trainer_env.agents.catalogue import Agent
from ml_trainer_env.agents.players import Player, digest, slug
from ml_trainer_env.agents.records import BadRecord, Header, Line, RecordWriter
from ml_trainer_env.agents.session import Connect
from ml_trainer_env.evals.progress import Progress
from ml_trainer_env.task_ids import TaskId, group_of


class Interrupted(Exception):
    """Raised inside an attempt when the evaluation is to stop."""


@dataclass(frozen=True, slots=True)
class Contender:
    """An agent on a task, and who that is here and now."""

    task_id: TaskId
    agent: Agent
    player: Player


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt to be made."""

    contender: Contender
    task_version: int
    engine: str | None
    seed: int

    @property
    def name(self) -> str:
        return f"{slug(self.contender.task_id)}-{self.contender.player.file_name}-{self.seed}"

    def is_recorded(self, folder: Path) -> bool:
        headers = (_header(path) for path in self._records(folder))
        return any(header is not None and self._made(header) for header in headers)

    def new_record(self, folder: Path) -> Path:
        """Where the attempt goes; what is in its place was made in the same way, or is broken."""
        plain, own = self._records(folder)
        header = _header(plain)
        return plain if header is None or self._made(header) else own

    def _records(self, folder: Path) -> tuple[Path, Path]:
        """Where its record may be: the second one keeps clear of another way's."""
        way = digest(f"{self.task_version} {self.engine}")
        return folder / f"{self.name}.jsonl", folder / f"{self.name}-{way}.jsonl"

    def _made(self, header: Header) -> bool:
        """Whether a record with this header is one of this attempt."""
        return (header.task_id, header.player, header.seed) == (
            self.contender.task_id,
            self.contender.player,
            self.seed,
        ) and (header.task_version, header.engine) == (self.task_version, self.engine)


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt without a grade."""

    job: Job
    error: str


def contenders(agents: Iterable[str], tasks: Iterable[TaskId]) -> list[Contender]:
    """Each agent on each task, once. Raises `AgentUnavailable`, and ValueError for bad settings."""
    found = {name: catalogue.find(name) for name in agents}
    every = product(dict.fromkeys(tasks), found.values())
    return [Contender(task_id, agent, agent.player(task_id)) for task_id, agent in every]


def jobs(of: Sequence[Contender], seeds: int, connect: Connect) -> list[Job]:
    """Seed by seed, so that a part of an evaluation is a smaller evaluation."""
    asked = {group_of(each.task_id): each.task_id for each in of}
    ways = {group: _way(task_id, connect) for group, task_id in asked.items()}
    return [
        Job(each, *ways[group_of(each.task_id)], seed) for seed, each in product(range(seeds), of)
    ]


def pending(wanted: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs that are not on record in `folder`."""
    return [job for job in wanted if not job.is_recorded(folder)]


def evaluate(
    todo: Sequence[Job],
    folder: Path,
    connect: Connect,
    *,
    parallel: int,
    progress: Progress,
    curves: Path | None = None,
) -> list[Failure]:
    """Play `todo`, `parallel` attempts at a time. Raises KeyboardInterrupt when interrupted."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="attempt")
    try:
        work = {
            pool.submit(_play, job, folder, connect, stop, progress, curves): job for job in todo
        }
        ended = [(work[done], done.exception()) for done in as_completed(work)]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    return [Failure(job, str(error) or type(error).__name__) for job, error in ended if error]


def together(failures: Iterable[Failure]) -> Iterator[str]:
    """One line for each error, however many attempts had it: a full disk stops them all."""
    by_error: dict[str, list[str]] = {}
    for failure in failures:
        by_error.setdefault(failure.error, []).append(failure.job.name)
    for error, names in by_error.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{names[0]}{others} failed: {error}"


def _play(
    job: Job,
    folder: Path,
    connect: Connect,
    stop: threading.Event,
    progress: Progress,
    curves: Path | None,
) -> None:
    def stop_when_told(_: Line) -> None:
        if stop.is_set():
            raise Interrupted

    of = job.contender
    with RecordWriter(job.new_record(folder)) as record, progress.attempt(job.name) as shown:
        if job.is_recorded(folder):  # by another evaluation, since this one looked
            progress.found(job.name)
            return
        observers: list[Observer] = [record, shown, stop_when_told]
        if curves is not None:
            observers.append(_tensorboard(curves / job.name))
        with Attempt(of.player, connect, of.task_id, job.seed, observers) as attempt:
            of.agent(attempt)


def _tensorboard(folder: Path) -> Observer:
    from ml_trainer_env.agents.curves import TensorBoardCurves  # of an extra

    return TensorBoardCurves(folder)


def _way(task_id: TaskId, connect: Connect) -> tuple[int, str | None]:
    """The version of the task, and the engine that trains it, behind `connect`."""
    session = connect()
    try:
        session.begin(task_id, 0)
        state = session.state()
        return state.task_version or 0, state.engine
    finally:
        session.close()


def _header(path: Path) -> Header | None:
    """Of the whole record at `path`; None when there is none."""
    with suppress(BadRecord):
        return records.read(path).header
    return None
