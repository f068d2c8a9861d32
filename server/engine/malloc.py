"""How glibc treats freed memory; elsewhere nothing happens. Changes no bit.

What suits training suits hardly anything else, so it is set for a process that trains.
"""

# pyright: strict

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h
_MB = 2**20


def keep_freed() -> None:
    """For a process that trains.

    A step frees and takes megabytes again; with glibc's defaults each time through `munmap` and
    page faults, which was measured to cost a fifth of the step.
    """
    _set({_TRIM_THRESHOLD: 2**31 - 1, _MMAP_THRESHOLD: 2**30})


def _set(parameters: dict[int, int]) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in parameters.items():
            libc.mallopt(parameter, value)
