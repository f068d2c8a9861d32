"""The learning rate of a cluster: warm-up and cosine are functions of the clock, for time is what
runs out.
"""

# pyright: strict

from __future__ import annotations

import math

from ml_trainer_env.events import Settings

FLOOR = 0.05  # of the cosine, at the deadline
FIRST = 1e-3  # of the warm-up, at the start


def factor(settings: Settings, part: float) -> float:
    """Of the rate that was set, when this part of the time is over."""
    found = min(1.0, part / settings.warmup + FIRST) if settings.warmup else 1.0
    if settings.lr_schedule == "cosine":
        found *= FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))
    return found
