"""What all sessions of a process share, as its settings say; made when first needed.

A server trains in worker processes and loads no torch itself; an environment inside another program
trains in that program's own process. Both share epochs between their sessions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from ml_trainer_env.server import runs, settings
from ml_trainer_env.server.machine.ending import Ending
from ml_trainer_env.server.runs import Engine, Run
from ml_trainer_env.server.runtime.asking import QueueFull
from ml_trainer_env.server.runtime.cores import MAX_WAITING, Cores, available
from ml_trainer_env.server.runtime.pool import Pool
from ml_trainer_env.server.runtime.ray.farm import Farm
from ml_trainer_env.server.runtime.ray.nodes import Wanted
from ml_trainer_env.server.runtime.records import NAME, Records
from ml_trainer_env.server.runtime.runner import (
    Executor,
    Runner,
    SliceRunner,
    WorkerFailed,
    WorkerLost,
)
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.session.places import Places
from ml_trainer_env.server.session.saved import SavedEpisodes
from ml_trainer_env.server.settings import Settings
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.server.validation import ActionError

log = logging.getLogger("uvicorn.error")  # uvicorn's own: where an operator looks

T = TypeVar("T")
_MB = 2**20


def _once(make: Callable[[], T]) -> Callable[[], T]:
    """`make()` at the first call; also when many threads make it at the same time."""
    made, lock = cache(make), threading.Lock()

    def get() -> T:
        with lock:
            return made()

    return get


def begin(engine: Engine, task: Task, seed: int) -> Run:
    """The untrained run. Raises `ActionError` for a task that is too large for a session."""
    allowed = settings.current().session_mb * _MB
    needed = engine.state_bytes.get(task.workload.network, 0)
    if needed > allowed:
        raise ActionError(
            f"task_id: a session of {task.task_id} holds up to {needed / _MB:.1f} MB, and this "
            f"server allows {allowed // _MB} MB (ML_TRAINER_SESSION_MB)"
        )
    return runs.begin(task.workload, seed, engine)


def runner_on(executor: Executor, chosen: Settings) -> Runner:
    """Has `executor` train on this machine, with what is remembered as the settings say."""
    folder = chosen.state_dir
    states = States(
        (chosen.state_mb if folder else chosen.snapshot_mb) * _MB, folder and folder / "states"
    )
    cores = Cores(chosen.threads, available(chosen.cores), _most_waiting(chosen))
    return _shared(SliceRunner(executor, cores, states), chosen)


def _shared(runner: Runner, chosen: Settings) -> Runner:
    if not chosen.sharing:
        return runner
    folder = chosen.state_dir
    return SharingRunner(runner, Records(folder and folder / NAME), chosen.verify_shared)


def _most_waiting(chosen: Settings) -> int:
    """Unless it is set, no session that has a place is turned away."""
    if chosen.max_waiting is None:
        return max(MAX_WAITING, chosen.max_sessions)
    return chosen.max_waiting


@_once
def saved_episodes() -> SavedEpisodes:
    """What can be forked, and with a state folder resumed."""
    folder = settings.current().state_dir
    return SavedEpisodes(folder / "episodes" if folder else None)


@_once
def places() -> Places[Any]:
    """Of a server, for all its doors together."""
    return Places(settings.current().max_sessions)


@_once
def inline_runner() -> Runner:
    """Trains in the threads of this process."""
    from ml_trainer_env.server.runtime.inline import Inline  # torch

    chosen = settings.current()
    return runner_on(Inline(chosen.precision), chosen)


@_once
def server_runner() -> Runner:
    """In worker processes, unless the settings say otherwise."""
    chosen = settings.current()
    match chosen.runner:
        case "pool":
            return runner_on(pool(), chosen)
        case "ray":
            return _shared(farm().runner, chosen)
        case "inline":
            return inline_runner()


@_once
def pool() -> Pool:
    """Needs no closing: the workers end with this process."""
    chosen = settings.current()
    return Pool(available(chosen.cores), chosen.precision)


@_once
def farm() -> Farm:
    """Needs no closing either: what speaks to Ray ends with this process."""
    chosen = settings.current()
    cores = Cores(chosen.threads, 1, _most_waiting(chosen))
    wanted = Wanted(chosen.precision, chosen.ray_address, chosen.cores, chosen.ray_engine)
    return Farm(wanted, cores, chosen.snapshot_mb * _MB)


def load() -> None:
    """Load torch and the engine, for whoever trains in this process."""
    from ml_trainer_env.server import trainer

    trainer.configure_process()
    trainer.engine_fingerprint()  # a first step: torch loads some of itself only then
    inline_runner()


def prepare(*, workers: bool) -> None:
    """Have the data sets ready, fetching what is missing; failures go to the log.

    `workers`: start those of the pool, which load them. The machines of a cluster fetch theirs.
    """
    from ml_trainer_env.server import datasets

    try:
        if settings.current().runner == "ray":
            farm().engine()
            return
        if workers:
            pool().prepare()
        for name in datasets.NAMES:
            datasets.prepare(name)
        if workers:
            pool().prepare(datasets.NAMES)
    except (Ending, QueueFull):  # of which the farm has told
        return
    except (ValueError, WorkerFailed, WorkerLost, datasets.DatasetUnavailable) as error:
        log.error("%s", error)  # whoever trains is told that it failed
    else:
        log.info("ready: data are loaded, and whoever trains")
