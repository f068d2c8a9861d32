"""How glibc treats freed memory; elsewhere nothing happens. Changes no bit.

What suits training does not suit holding the states of many sessions, so it is set for a process.
"""

# pyright: strict

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # parameters of mallopt, from malloc.h
_MB = 2**20


def keep_freed() -> None:
    """For a process that trains.

    A step frees and takes megabytes again; with glibc's defaults each time through `munmap` and
    page faults, which was measured to cost a fifth of the step.
    """
    _set({_TRIM_THRESHOLD: 2**31 - 1, _MMAP_THRESHOLD: 2**30})


def return_freed() -> None:
    """For a process whose many threads take states and let them go.

    By default each thread's arena keeps what was freed in it, in pieces: the server of 64 sessions
    grew by 1.5 MB an episode. What is large, like a vector of weights of the hard task, goes back
    to the system instead. What is smaller is kept to be used again, like the bytes of a state of
    the easy task on its way to a worker and back: page faults were half of what that way cost.
    """
    _set({_TRIM_THRESHOLD: 8 * _MB, _MMAP_THRESHOLD: 1_650_000, _ARENA_MAX: 4})


def _set(parameters: dict[int, int]) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in parameters.items():
            libc.mallopt(parameter, value)
