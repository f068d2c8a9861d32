"""Cores lent to whoever computes: never more than there are, in the order of asking."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ml_trainer_env.server.asking import PATIENCE, CalledOff, never


class Cores:
    """`total` cores (by default all that this process may use), lent for an epoch at a time.

    Who is alone is lent up to `threads` cores; with others waiting, each gets one.
    """

    def __init__(self, threads: int, total: int | None = None) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1; got {threads}")
        if total is not None and total < 1:
            raise ValueError(f"cores must be at least 1; got {total}")
        self.total = total or _available()
        self.threads = min(threads, self.total)
        self._free = self.total
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()

    @property
    def waiting(self) -> int:
        """Askers who have no core yet."""
        return len(self._queue)

    @contextmanager
    def lend(self, gone: Callable[[], bool] = never) -> Iterator[int]:
        """Wait for a turn; gives how many threads the block may run.

        Raises `CalledOff` when `gone()` before the turn came.
        """
        lent = self._wait_for_turn(gone)
        try:
            yield lent
        finally:
            with self._changed:
                self._free += lent
                self._changed.notify_all()

    def _wait_for_turn(self, gone: Callable[[], bool]) -> int:
        place = object()
        with self._changed:
            self._queue.append(place)
            try:
                while not (self._queue[0] is place and self._free > 0):
                    if gone():
                        raise CalledOff("nobody waits for it any more")
                    self._changed.wait(PATIENCE)
                alone = len(self._queue) == 1 and self._free >= self.threads
                lent = self.threads if alone else 1
                self._free -= lent
            finally:
                self._queue.remove(place)
                self._changed.notify_all()
        return lent


def _available() -> int:
    """Cores that this process may use; not all systems can say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
