"""Numbers drawn by name: a counter-based generator.

A number is a hash of a place and its own name: the same in any process and order, whatever else is
drawn there, and a new name leaves the others as they were.
"""

# pyright: strict

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Draw:
    """One number for each name."""

    place: str

    def uniform(self, name: str) -> float:
        """In [0, 1), a multiple of 2^-53."""
        return (self.bits(name) >> 11) * 2.0**-53

    def bits(self, name: str) -> int:
        """64 of them."""
        digest = hashlib.sha256(f"{self.place}|{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big")

    def one_of(self, name: str, choices: Sequence[_T]) -> _T:
        return choices[int(self.uniform(name) * len(choices))]

    def whole(self, name: str, least: int, most: int) -> int:
        return least + math.floor((most - least + 1) * self.uniform(name))

    def log_uniform(self, name: str, low: float, high: float) -> float:
        """To three digits."""
        return float(f"{low * (high / low) ** self.uniform(name):.3g}")

    def chance(self, name: str, probability: float) -> bool:
        return self.uniform(name) < probability
