"""Whether a measurement was alone on the machine: processor time that other processes took.

Figures taken beside other work are not figures: on busy cores, a team of spinning OpenMP threads,
which is what the usual way trains with, was seen to become a hundred times slower.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ALONE = 0.05  # share of all cores that others may take: a desktop at rest, not a test suite


@dataclass(frozen=True, slots=True)
class Load:
    """Seconds of processor time so far, and the clock."""

    machine: float
    own: float  # of this process and of those of its children that have ended
    clock: float

    @classmethod
    def now(cls) -> Self | None:
        """None where the machine's total is not to be had: it is Linux's."""
        try:
            total = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
        except OSError:
            return None
        mine = os.times()
        own = mine.user + mine.system + mine.children_user + mine.children_system
        return cls(busy_seconds(total, os.sysconf("SC_CLK_TCK")), own, time.perf_counter())

    def others_since(self, before: Load, cores: int) -> float:
        """Mean share of `cores` cores that other processes kept busy, 0..1."""
        others = (self.machine - before.machine) - (self.own - before.own)
        return min(1.0, max(0.0, others / (cores * (self.clock - before.clock))))


def busy_seconds(line: str, ticks: int) -> float:
    """Seconds that are neither idle nor waiting, from the first line of /proc/stat.

    Time stolen by other guests of the host counts: it is lost to us in the same way.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / ticks
