"""Agents x tasks x seeds, each attempt on record, several at a time, and resumable.

What is on record in the folder already, for the same version of the task, is not played again. An
attempt that fails is reported and leaves the others alone. Interrupted, attempts stop at their next
answer and leave no whole record, so the same command goes on where it stopped.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ml_trainer_env.agents import catalogue, records
from ml_trainer_env.agents.attempt import Attempt, Observer
from ml_trainer_env.agents.records import BadRecord, Line, RecordWriter
from ml_trainer_env.agents.session import Connect
from ml_trainer_env.evals.progress import Progress
from ml_trainer_env.models import TASK_IDS, TaskId


class Interrupted(Exception):
    """Raised inside an attempt when the evaluation is to stop."""


@dataclass(frozen=True, slots=True, order=True)
class Job:
    """One attempt to be made."""

    task_id: TaskId
    agent: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task_id}-{re.sub(r'[^A-Za-z0-9._]+', '_', self.agent)}-{self.seed}"

    def record(self, folder: Path) -> Path:
        return folder / f"{self.name}.jsonl"


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt without a grade."""

    job: Job
    error: str


def jobs(agents: Iterable[str], tasks: Iterable[TaskId], seeds: int) -> list[Job]:
    """Seed by seed, so that a part of an evaluation is a smaller evaluation."""
    every = product(range(seeds), tasks, agents)
    return [Job(task_id, agent, seed) for seed, task_id, agent in every]


def pending(wanted: Sequence[Job], folder: Path, connect: Connect) -> list[Job]:
    """The jobs without a record of the present version of their task."""
    asked = {job.task_id for job in wanted}
    versions = {task_id: _version(task_id, connect) for task_id in TASK_IDS if task_id in asked}
    return [job for job in wanted if _recorded_version(job.record(folder)) != versions[job.task_id]]


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

    agent = catalogue.find(job.agent)
    with RecordWriter(job.record(folder)) as record, progress.attempt(job.name) as shown:
        observers: list[Observer] = [record, shown, stop_when_told]
        if curves is not None:
            observers.append(_tensorboard(curves / job.name))
        with Attempt(job.agent, connect, job.task_id, job.seed, observers) as attempt:
            agent(attempt)


def _tensorboard(folder: Path) -> Observer:
    from ml_trainer_env.agents.curves import TensorBoardCurves  # of an extra

    return TensorBoardCurves(folder)


def _version(task_id: TaskId, connect: Connect) -> int | None:
    session = connect()
    try:
        session.begin(task_id, 0)
        return session.state().task_version
    finally:
        session.close()


def _recorded_version(path: Path) -> int | None:
    with suppress(BadRecord):
        return records.read(path).header.task_version
    return None
