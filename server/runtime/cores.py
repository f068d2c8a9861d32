"""Cores lent to whoever computes: never more than there are, in the order of asking.

The queue is bounded: beyond `max_waiting`, whoever asks for a first epoch is told at once when to
try again. Whoever was served before is always queued, so an action that began comes to its end.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from ml_trainer_env.models import SERVER_BUSY
from ml_trainer_env.server import counters
from ml_trainer_env.server.machine import quota
from ml_trainer_env.server.runtime.asking import Asker, CalledOff, QueueFull, patience

MAX_WAITING = 256
SLICE = 0.25  # seconds that a turn lasts at most, but for the epoch in progress; by default
ROUND = 2.0  # seconds in which a crowd is to have had a turn each; its turns are as much shorter
SMOOTHING = 0.2  # weight of the latest turn in the mean that retry hints are made from


class _Waiter:
    """An asker in the queue; `woken` is set when cores are lent to it, or its asker may be gone."""

    def __init__(self, who: object) -> None:
        self.who = who
        self.woken = threading.Event()
        self.lent = 0  # cores


class Turn:
    """Cores that are lent, and for how long."""

    def __init__(self, cores: Cores, threads: int) -> None:
        self.threads = threads  # that may be kept busy
        self._cores = cores
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the turn lasts, as things are."""
        return min(self._cores.slice, ROUND / (1 + self._cores.waiting / max(1, self._cores.total)))

    @property
    def spent(self) -> float:
        """Seconds so far, of all threads together."""
        return self.threads * (time.monotonic() - self._began)

    def over(self) -> bool:
        """Whether others have waited long enough; whoever has more than one core, at once."""
        if not self._cores.waiting:
            return False
        return self.threads > 1 or time.monotonic() - self._began >= self.seconds


class Cores:
    """`total` cores (by default all that this process may use), lent for a turn at a time.

    Who is alone is lent up to `threads` cores: nobody else waits, and nobody else came last. In
    company each gets one.
    """

    def __init__(
        self, threads: int, total: int | None = None, max_waiting: int = MAX_WAITING
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1; got {threads}")
        if total is not None and total < 1:
            raise ValueError(f"cores must be at least 1; got {total}")
        self.total = total or available()
        self.slice = SLICE
        self.threads = min(threads, self.total)
        self._allowed = threads
        self._free = self.total
        self._max_waiting = max_waiting
        self._last: object = None  # who was served last
        self._core_seconds = 0.0  # mean of a turn
        self._lock = threading.Lock()
        self._queue: deque[_Waiter] = deque()

    def resize(self, total: int, side_by_side: int) -> None:
        """From now on there are `total` cores, and at most `side_by_side` of them for one asker.

        Those that are lent stay lent. Without any, whoever asks waits.
        """
        with self._lock:
            self._free += total - self.total
            self.total = total
            self.threads = max(1, min(self._allowed, side_by_side))
            self._serve()

    @property
    def waiting(self) -> int:
        """Askers who have no core yet."""
        return len(self._queue)

    @property
    def lent(self) -> int:
        """Cores that somebody has."""
        return self.total - self._free

    @contextmanager
    def lend(self, asker: Asker | None = None) -> Iterator[Turn]:
        """Wait for a turn, which lasts as long as the block.

        Raises `QueueFull`, and `CalledOff` when the asker was gone before the turn came.
        """
        turn = Turn(self, self._wait_for_turn(asker or Asker(admitted=True)))
        try:
            yield turn
        finally:
            with self._lock:
                weight = SMOOTHING if self._core_seconds else 1.0
                self._core_seconds += weight * (turn.spent - self._core_seconds)
                self._give_back(turn.threads)
            counters.CORE_SECONDS.inc(turn.spent)

    def _wait_for_turn(self, asker: Asker) -> int:
        waiter, asked = _Waiter(asker.who), time.monotonic()
        with self._lock:
            must_wait = self._queue or self._free <= 0
            if must_wait and not asker.admitted and len(self._queue) >= self._max_waiting:
                counters.TRAININGS_REFUSED.inc()
                raise QueueFull(self._refusal())
            self._queue.append(waiter)
            self._serve()
        with asker.bell.wakes(waiter.woken):
            while not waiter.lent:
                waiter.woken.wait(patience(len(self._queue)))
                waiter.woken.clear()
                if not waiter.lent and asker.gone():
                    self._leave(waiter)
                    raise CalledOff("nobody waits for it any more")
        asker.admitted = True
        counters.CORE_WAIT_SECONDS.observe(time.monotonic() - asked)
        return waiter.lent

    def _serve(self) -> None:
        """Lend what is free to whoever is first. Needs the lock.

        Only those who are served are woken: a crowd that woke at every turn would take the
        interpreter lock from the threads that hand epochs out.
        """
        while self._queue and self._free > 0:
            waiter = self._queue.popleft()
            # Two trainings that took turns would each look alone, and never run side by side.
            alone = not self._queue and self._last in (None, waiter.who)
            waiter.lent = self.threads if alone and self._free >= self.threads else 1
            self._free -= waiter.lent
            self._last = waiter.who
            waiter.woken.set()

    def _leave(self, waiter: _Waiter) -> None:
        """The waiter goes away, whether or not its turn has come in the meantime."""
        with self._lock:
            if waiter.lent:
                self._give_back(waiter.lent)
            else:
                self._queue.remove(waiter)

    def _give_back(self, lent: int) -> None:
        """Needs the lock."""
        self._free += lent
        self._serve()

    def _refusal(self) -> str:
        """In words; the queue is through once each of it has had a turn."""
        seconds = math.ceil(self._core_seconds * len(self._queue) / max(1, self.total))
        return (
            f"{SERVER_BUSY}: {len(self._queue)} trainings wait for a core; nothing was trained or "
            f"charged; try again in about {max(1, seconds)} s"
        )


def available(at_most: int | None = None) -> int:
    """Cores that this process may keep busy, as its affinity and its control groups have it.

    `at_most`: what its user allows.
    """
    if hasattr(os, "sched_getaffinity"):  # not all systems can say
        visible = len(os.sched_getaffinity(0))
    else:
        visible = os.cpu_count() or 1
    allowed = quota.processors()
    bounds = (visible, math.inf if allowed is None else math.floor(allowed), at_most or math.inf)
    return max(1, int(min(bounds)))
