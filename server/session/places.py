"""The places of a server: one for every open episode, whichever door it came in by.

OpenEnv counts the sessions of its own doors and nothing else. This counts episodes: of its doors,
of standard MCP clients, of visitors of the page. It is also where the page finds those that are
being played.
"""

# pyright: strict

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from ml_trainer_env.server import counters
from ml_trainer_env.server.session.turnover import Turnover
from ml_trainer_env.server.validation import ActionError

T = TypeVar("T")


class NoPlace(ActionError):
    """All places are taken; the message says when to try again."""


class Places(Generic[T]):
    """At most `limit` guests at a time. Any thread may call."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._guests: dict[int, T] = {}
        self._lock = threading.Lock()
        self._turnover = Turnover()

    def take(self, guest: T) -> None:
        """A place for `guest`; nothing changes for one that has a place. Raises `NoPlace`."""
        with self._lock:
            if id(guest) not in self._guests and len(self._guests) >= self.limit:
                counters.SESSIONS_REFUSED.inc()
                raise NoPlace(
                    f"all {self.limit} places of this server are taken; "
                    f"try again in about {self._turnover.seconds} s"
                )
            self._guests[id(guest)] = guest

    def leave(self, guest: T) -> None:
        """Give the place of `guest` back, if it has one."""
        with self._lock:
            if self._guests.pop(id(guest), None) is not None:
                self._turnover.freed()

    def guests(self) -> tuple[T, ...]:
        """Who has a place now, the longest there first."""
        with self._lock:
            return tuple(self._guests.values())
