"""Who asks a runner for epochs. Knows no engine, so that episodes need no torch."""

# pyright: strict

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ml_trainer_env.server.validation import ActionError

PATIENCE = 2.0  # seconds between two looks of who waits at what no bell is rung for, a time limit
GLANCES = 100  # such looks a second, of all who wait together: a crowd looks more seldom


class QueueFull(ActionError):
    """Too many wait already; the message says when to try again. Nothing has happened."""


class CalledOff(Exception):
    """The asker went away before its turn came; nothing has happened."""


def never() -> bool:
    """The `stop` of whoever lets training run."""
    return False


class Bell:
    """Rung when somebody may have gone away: wakes who waits on their behalf. Any thread may call.

    Looking instead, ten times a second, cost a server more than an epoch of a slow task.
    """

    def __init__(self) -> None:
        self._sleepers: set[threading.Event] = set()

    def ring(self) -> None:
        for sleeper in tuple(self._sleepers):
            sleeper.set()

    @contextmanager
    def wakes(self, sleeper: threading.Event) -> Generator[None]:
        """Within the block, ringing sets `sleeper`."""
        self._sleepers.add(sleeper)
        try:
            yield
        finally:
            self._sleepers.discard(sleeper)


@runtime_checkable
class Rings(Protocol):
    """A `stop` that rings when its answer may have changed."""

    bell: Bell

    def __call__(self) -> bool: ...


def bell_of(stop: Callable[[], bool]) -> Bell:
    """That of `stop`, or one that nobody rings."""
    return stop.bell if isinstance(stop, Rings) else Bell()


def patience(waiting: int) -> float:
    """Seconds between two looks of one of `waiting` askers."""
    return max(PATIENCE, waiting / GLANCES)


@dataclass(slots=True)
class Asker:
    """One request for epochs: `gone()` says that nobody wants them any more."""

    gone: Callable[[], bool] = never
    who: object = None  # the same for all requests of an episode
    admitted: bool = False  # once it has had a core, it is never turned away
    bell: Bell = field(default_factory=Bell)  # rung when it may be gone
