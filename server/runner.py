"""Where training runs. One interface; which implementation is behind it never changes a bit.

An epoch is the unit of scheduling: whoever trains many epochs asks again for each, and epochs are
served in the order of asking, so a short request never waits for a long one to end.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import trainer
from ml_trainer_env.server.team import SERIAL, Team
from ml_trainer_env.server.trainer import TrainingState


class Runner(Protocol):
    """Runs the engine's functions; blocks the calling thread until the result is there."""

    def advance(self, state: TrainingState, plan: EpochPlan) -> TrainingState: ...

    def test_accuracy(self, state: TrainingState) -> float: ...


class InlineRunner:
    """In the calling threads. All of them together keep at most `cores` cores busy.

    An epoch that is alone is lent up to `threads` cores; with others waiting, each gets one.
    """

    def __init__(self, threads: int = 2, cores: int | None = None) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1; got {threads}")
        if cores is not None and cores < 1:
            raise ValueError(f"cores must be at least 1; got {cores}")
        self._free = cores or _cores()
        self._threads = min(threads, self._free)
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._idle: list[Team] = []  # of self._threads threads each

    def advance(self, state: TrainingState, plan: EpochPlan) -> TrainingState:
        with self._lent_cores() as team:
            return trainer.advance(state, plan, team)

    def test_accuracy(self, state: TrainingState) -> float:
        with self._lent_cores() as team:
            return trainer.test_accuracy(state, team)

    @contextmanager
    def _lent_cores(self) -> Iterator[Team]:
        place = object()
        with self._changed:
            self._queue.append(place)
            self._changed.wait_for(lambda: self._queue[0] is place and self._free > 0)
            self._queue.popleft()
            alone = not self._queue and self._free >= self._threads > 1
            team = self._idle_team() if alone else SERIAL
            self._free -= team.threads
            self._changed.notify_all()
        try:
            yield team
        finally:
            with self._changed:
                self._free += team.threads
                if team is not SERIAL:
                    self._idle.append(team)
                self._changed.notify_all()

    def _idle_team(self) -> Team:
        return self._idle.pop() if self._idle else Team(self._threads)


def _cores() -> int:
    """Cores that this process may use; not all systems can say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
