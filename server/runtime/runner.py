"""Where training runs. One interface; which implementation is behind it never changes a bit.

An epoch is the unit of scheduling: whoever trains many epochs asks again for each, and epochs are
served in the order of asking, so a short request never waits for a long one to end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import trainer
from ml_trainer_env.server.engine.team import SERIAL, Team
from ml_trainer_env.server.runtime.asking import Asker
from ml_trainer_env.server.runtime.cores import MAX_WAITING, Cores
from ml_trainer_env.server.trainer import TrainingState


class Runner(Protocol):
    """Runs the engine's functions; blocks the calling thread until the result is there.

    With an `asker`, `advance` raises `CalledOff` when the asker is gone before the epoch was begun,
    and `QueueFull` when too many wait for its first.
    """

    def advance(
        self, state: TrainingState, plan: EpochPlan, asker: Asker | None = None
    ) -> TrainingState: ...

    def test_accuracy(self, state: TrainingState) -> float: ...

    def recall(self, key: str) -> TrainingState | None:
        """The state with this key if it is at hand, without training."""
        ...


class InlineRunner:
    """In the calling threads. All of them together keep at most `cores` cores busy.

    An epoch that is alone is lent up to `threads` cores; with others waiting, each gets one.
    """

    def __init__(
        self, threads: int = 2, cores: int | None = None, max_waiting: int = MAX_WAITING
    ) -> None:
        self._cores = Cores(threads, cores, max_waiting)
        self._idle: list[Team] = []  # of self._cores.threads threads each
        self._lock = threading.Lock()

    def advance(
        self, state: TrainingState, plan: EpochPlan, asker: Asker | None = None
    ) -> TrainingState:
        with self._lent_cores(asker) as team:
            return trainer.advance(state, plan, team)

    def test_accuracy(self, state: TrainingState) -> float:
        with self._lent_cores() as team:
            return trainer.test_accuracy(state, team)

    def recall(self, key: str) -> TrainingState | None:
        return None

    @contextmanager
    def _lent_cores(self, asker: Asker | None = None) -> Iterator[Team]:
        with self._cores.lend(asker) as threads:
            team = self._idle_team(threads) if threads > 1 else SERIAL
            try:
                yield team
            finally:
                if team is not SERIAL:
                    with self._lock:
                        self._idle.append(team)

    def _idle_team(self, threads: int) -> Team:
        with self._lock:
            return self._idle.pop() if self._idle else Team(threads)
