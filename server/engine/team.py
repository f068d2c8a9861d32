"""A team of at most a few threads that computes independent parts of one training step.

Which thread computes a part never changes its bits: parts share nothing that they write, and
their results come back in the order of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Team:
    """`threads` threads, the caller among them; each runs PyTorch without threads of its own."""

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1; got {threads}")
        self.threads = threads
        self._pool = (
            ThreadPoolExecutor(threads - 1, "ml-trainer-team", torch.set_num_threads, (1,))
            if threads > 1
            else None
        )

    def map(self, function: Callable[[T], R], parts: Sequence[T]) -> list[R]:
        """The results for all parts, in order; returns when all are done."""
        if self._pool is None or len(parts) == 1:
            return [function(part) for part in parts]
        share = [parts[i :: self.threads] for i in range(self.threads)]
        others = [self._pool.submit(_run_all, function, theirs) for theirs in share[1:]]
        try:
            mine = _run_all(function, share[0])
        finally:
            wait(others)  # after a failure too: nobody computes on cores that were given back
        lists = [mine, *(other.result() for other in others)]
        return [lists[i % self.threads][i // self.threads] for i in range(len(parts))]

    def ahead(self, function: Callable[[T], R], parts: Iterable[T]) -> Iterator[R]:
        """The results one by one, in order; the other threads, if any, compute them ahead."""
        return map(function, parts) if self._pool is None else self._pool.map(function, parts)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _run_all(function: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    return [function(part) for part in parts]


SERIAL = Team(1)
