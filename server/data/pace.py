"""Whether bytes come fast enough for a source to be kept: neither silence nor a trickle is.

A mirror that is slow is left while there are others. When none was faster, the slow ones are asked
again, and then only what would never end is given up. Knows no network: it is told of the bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ml_trainer_env.server.data.formats import SourceError

BRISK = 100_000  # bytes a second: the 170 MB of CIFAR-10, the most there is, take half an hour
BARELY = 2_000  # bytes a second: they take a day
WINDOW_S = 20.0  # what is slow for so long is slow


class TooSlow(SourceError):
    """Bytes come, but too few of them; where nothing is faster it can be asked again."""


def all_failed(errors: Sequence[SourceError]) -> SourceError:
    """One error for all; it can be asked again when one of them can."""
    kind = TooSlow if any(isinstance(error, TooSlow) for error in errors) else SourceError
    return kind("; ".join(map(str, errors)))


class Pace:
    """The bytes of one download. `clock` in seconds."""

    def __init__(
        self, least: float, silence: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`least`: bytes a second, `silence`: seconds without any."""
        self._least, self._silence, self._clock = least, silence, clock
        self._done = 0
        self._heard = clock()
        self._window: tuple[float, int] | None = None  # since when and from which byte

    def reached(self, done: int) -> None:
        """So many bytes are here. Raises `TooSlow`, and `SourceError` after a silence."""
        now = self._clock()
        if done > self._done:
            self._done, self._heard = done, now
            self._judge(now)
        elif now - self._heard > self._silence:
            raise SourceError(f"nothing arrived for {self._silence:g} s")

    def _judge(self, now: float) -> None:
        """Only when bytes arrive: a pause after the last one is no slowness."""
        if self._window is None:  # what came before the first look took nobody knows how long
            self._window = now, self._done
        since, start = self._window
        if now - since < WINDOW_S:
            return
        speed = (self._done - start) / (now - since)
        if speed < self._least:
            raise TooSlow(f"too slow, {speed / 1000:.1f} kB/s")
        self._window = now, self._done
