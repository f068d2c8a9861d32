"""States that lie with the machines that made them: what is kept, by key, within a budget."""

# pyright: strict

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.runtime.states import Nearest


class KeptElsewhere:
    """At most `budget` bytes of states; the same promises as `States`, without files.

    `forget` is told of those that are kept no longer. Any thread may call.
    """

    folder: Path | None = None

    def __init__(self, budget: int, forget: Callable[[Sequence[str]], None]) -> None:
        self.budget = budget
        self._forget = forget
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # bytes; the last used at the end
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes."""
        return self._used

    def __len__(self) -> int:
        return len(self._sizes)

    def nearest(self, run: Run) -> Nearest:
        """The latest state at hand on the way to `run`."""
        with self._lock:
            if not self._sizes:
                return Nearest(0)
            for epoch, key in reversed(list(enumerate(run.keys()))):
                if key in self._sizes:
                    self._sizes.move_to_end(key)
                    return Nearest(epoch, key)
        return Nearest(0)

    def put(self, key: str, size: int, descriptor: int | None, left: str | None = None) -> None:
        """The state with this key is there. `left`, from which it was trained, is first to go."""
        assert descriptor is None, "states of other machines come without files"
        with self._lock:
            self._used += size - self._sizes.get(key, 0)
            self._sizes[key] = size
            self._sizes.move_to_end(key)
            if left in self._sizes and left != key:
                self._sizes.move_to_end(left, last=False)
            gone: list[str] = []
            while self._used > self.budget:
                oldest, bytes_of_it = self._sizes.popitem(last=False)
                self._used -= bytes_of_it
                gone.append(oldest)
        if gone:
            self._forget(gone)

    def remove(self, key: str) -> None:
        """It is damaged, or gone."""
        with self._lock:
            self._used -= self._sizes.pop(key, 0)
        self._forget([key])

    def close(self) -> None:
        """All are gone, or needed no longer."""
        with self._lock:
            self._sizes.clear()
            self._used = 0
