"""What all sessions of a process share, as its settings say; made when first needed.

A server trains in worker processes, an environment inside another program in that program's own
process; both share epochs between their sessions.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from ml_trainer_env.server import settings
from ml_trainer_env.server.ending import Ending
from ml_trainer_env.server.runtime.cores import available
from ml_trainer_env.server.session.places import Places
from ml_trainer_env.server.session.saved import SavedEpisodes
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.server.validation import ActionError

if TYPE_CHECKING:  # importing them for real would load torch
    from ml_trainer_env.server.runtime.pool import PoolRunner
    from ml_trainer_env.server.runtime.runner import Runner
    from ml_trainer_env.server.trainer import TrainingState


log = logging.getLogger("uvicorn.error")  # uvicorn's own: where an operator looks

T = TypeVar("T")


def _once(make: Callable[[], T]) -> Callable[[], T]:
    """`make()` at the first call; also when many threads make it at the same time."""
    made, lock = cache(make), threading.Lock()

    def get() -> T:
        with lock:
            return made()

    return get


def begin(task: Task, seed: int) -> TrainingState:
    """The untrained network. Raises `ActionError` for a task that is too large for a session."""
    from ml_trainer_env.server import trainer  # torch: only once training is asked for

    chosen = settings.current()
    workload = trainer.Workload(task.network, task.dataset, task.shards, task.version)
    training = trainer.start(workload, seed, chosen.precision)
    needed, allowed = trainer.most_bytes(training), chosen.session_mb * 2**20
    if needed > allowed:
        raise ActionError(
            f"task_id: a session of {task.task_id} holds up to {needed / 2**20:.1f} MB, and this "
            f"server allows {chosen.session_mb} MB (ML_TRAINER_SESSION_MB)"
        )
    return training


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
    from ml_trainer_env.server.runtime.runner import InlineRunner
    from ml_trainer_env.server.runtime.sharing import shared

    chosen = settings.current()
    runner = InlineRunner(chosen.threads, available(chosen.cores), chosen.max_waiting)
    return shared(runner, chosen)


@_once
def server_runner() -> Runner:
    """In worker processes, unless the settings say otherwise."""
    from ml_trainer_env.server.runtime.sharing import shared

    chosen = settings.current()
    return shared(pool(), chosen) if chosen.runner == "pool" else inline_runner()


def load(*, workers: bool) -> None:
    """Load torch and the engine. `workers`: training is left to those of the pool."""
    from ml_trainer_env.server import trainer
    from ml_trainer_env.server.engine import malloc
    from ml_trainer_env.server.runtime import pool, sharing  # noqa: F401

    if workers:
        malloc.return_freed()
    else:
        trainer.configure_process()
    trainer.engine_fingerprint()  # a first step: torch loads some of itself only then
    # What is loaded stays. A full collection that goes through it holds everybody up for 0.3 s.
    gc.collect()
    gc.freeze()


def prepare(*, workers: bool) -> None:
    """Load the three data sets, fetching what is missing; failures go to the log.

    `workers`: start those of the pool, too, with the same data.
    """
    from ml_trainer_env.server import datasets, trainer

    try:
        trainer.engine_fingerprint(settings.current().precision)  # refuses what cannot be done here
        if workers:
            pool().prepare(datasets.NAMES)
        for name in datasets.NAMES:
            datasets.load(name)
    except Ending:
        return
    except (ValueError, datasets.DatasetUnavailable) as error:
        log.error("%s", error)  # whoever trains is told that it failed
    else:
        log.info("ready: torch and data are loaded")


@_once
def pool() -> PoolRunner:
    """Needs no closing: the workers end with this process."""
    from ml_trainer_env.server.runtime.pool import PoolRunner

    chosen = settings.current()
    return PoolRunner(chosen.threads, available(chosen.cores), max_waiting=chosen.max_waiting)
