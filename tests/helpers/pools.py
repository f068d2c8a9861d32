"""Pools of worker processes on little data, and requests to them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from states import small

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import trainer
from ml_trainer_env.server.runs import Plan, Run
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.pool import LoadedData, Pool
from ml_trainer_env.server.runtime.runner import Runner, SliceRunner
from ml_trainer_env.server.runtime.shared_data import share
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.trainer import TrainingState


@cache
def _shared(name: str) -> LoadedData:
    """Open until the tests end."""
    file, places = share(small(name))
    with file:
        return LoadedData(os.dup(file.fileno()), places)


def load(name: str) -> LoadedData:
    """For `Pool(load=...)`, which closes its descriptor."""
    data = _shared(name)
    return LoadedData(os.dup(data.file), data.places)


def over(
    pool: Pool, threads: int = 1, cores: int = 1, budget: int = 10**9, folder: Path | None = None
) -> SliceRunner:
    return SliceRunner(pool, Cores(threads, cores), States(budget, folder))


def workers_of(pool: Pool) -> list[subprocess.Popen[bytes]]:
    """Busy and idle."""
    return [worker for worker in pool.processes() if isinstance(worker, subprocess.Popen)]


def trained(runner: Runner, run: Run, plans: Sequence[Plan]) -> Run:
    for each in runner.train(run, plans):
        run = run.after(each.record)
    return run


def advanced(state: TrainingState, plans: Sequence[EpochPlan]) -> TrainingState:
    """What the engine makes of it in this process."""
    for each in plans:
        state = trainer.advance(state, each)
    return state
