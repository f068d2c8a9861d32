"""Who asks a runner for epochs. Knows no engine, so that episodes need no torch."""

# pyright: strict

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ml_trainer_env.server.validation import ActionError

PATIENCE = 0.5  # seconds between two looks at whether an asker who waits is still there
GLANCES = 100  # such looks a second, of all who wait together: a crowd looks more seldom


class QueueFull(ActionError):
    """Too many wait already; the message says when to try again. Nothing has happened."""


class CalledOff(Exception):
    """The asker went away before its turn came; nothing has happened."""


def never() -> bool:
    """The `stop` of whoever lets training run."""
    return False


def patience(waiting: int) -> float:
    """Seconds between two looks of one of `waiting` askers."""
    return max(PATIENCE, waiting / GLANCES)


@dataclass(slots=True)
class Asker:
    """One request for epochs: `gone()` says that nobody wants them any more."""

    gone: Callable[[], bool] = never
    who: object = None  # the same for all requests of an episode
    admitted: bool = False  # once it has had a core, it is never turned away
