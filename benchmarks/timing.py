"""Seconds: how they are taken, and what is said about many of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """What `n` repetitions took, in seconds: the median, the quartiles around it, the extremes."""

    n: int
    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Raises ValueError without any samples; a single one is its own quartiles."""
        if not seconds:
            raise ValueError("no samples")
        q1, median, q3 = (
            statistics.quantiles(seconds, n=4, method="inclusive")
            if len(seconds) > 1
            else [seconds[0]] * 3
        )
        return cls(len(seconds), median, q1, q3, min(seconds), max(seconds))


def seconds_of(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
