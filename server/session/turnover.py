"""How soon a place comes free, judged by how often one did: what a retry hint is made from."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

REMEMBERED = 8  # places that came free
FIRST_GUESS = 10.0  # seconds, before two have


class Turnover:
    """Told of every place that comes free."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._freed: deque[float] = deque(maxlen=REMEMBERED)

    def freed(self) -> None:
        self._freed.append(self._clock())

    @property
    def seconds(self) -> int:
        """The mean time between two, the present wait included; at least 1."""
        if len(self._freed) < 2:
            return math.ceil(FIRST_GUESS)
        return max(1, math.ceil((self._clock() - self._freed[0]) / len(self._freed)))
