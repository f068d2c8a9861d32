"""Where the tensors of runs lie: one file for each state, by the key of its run.

Whoever trains writes them and reads them, past this process, which only knows where they are.
Without a folder they are nameless files in memory, which go with their last user, however it ended.
With one they outlive the process, and several processes may share the folder.

Guarantees: the budget is not exceeded. The least recently used goes first, and before it those that
the same training has left behind; what is gone can be trained again. Any thread may call.
"""

# pyright: strict

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ml_trainer_env.server.runs import Run

try:
    import resource
except ImportError:  # another system, whose limits are others
    resource = None

log = logging.getLogger(__name__)

SUFFIX = ".state"
UNFINISHED = ".unfinished"
LOOK_AROUND = 64  # states put between two looks at what other processes have put
WRITTEN = 600.0  # seconds within which a file is written, unless its process was killed
OPEN_SHARE = 4  # at most one in so many of the files that this process may have open is a state


@dataclass(frozen=True, slots=True)
class Nearest:
    """The latest state of a run that is at hand; closes its file when it is left."""

    epoch: int  # of the run; 0 without a file: the untrained network
    key: str | None = None
    descriptor: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class _File:
    size: int  # bytes
    descriptor: int | None  # None: it has a name


class States:
    """At most `budget` bytes of states."""

    def __init__(self, budget: int, folder: Path | None = None) -> None:
        """Goes on with the files that an earlier process left in `folder`."""
        self.folder = folder
        self.budget = budget
        self._most = _most_open()
        self._lock = threading.Lock()
        self._used = 0
        self._count = 0  # of states that were put
        self._files: OrderedDict[str, _File] = OrderedDict()  # the last used at the end
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"*{UNFINISHED}"):
                with suppress(FileNotFoundError):
                    if time.time() - left.stat().st_mtime > WRITTEN:
                        left.unlink()
            self._adopt(folder)

    @property
    def used(self) -> int:
        """Bytes."""
        return self._used

    def __len__(self) -> int:
        return len(self._files)

    def nearest(self, run: Run) -> Nearest:
        """The latest state at hand on the way to `run`, opened."""
        descriptor = self.open(run.key)
        if descriptor is not None:
            return Nearest(run.epoch, run.key, descriptor)
        if run.history:
            for epoch, key in reversed(list(enumerate(run.keys()[:-1]))):
                descriptor = self.open(key)
                if descriptor is not None:
                    return Nearest(epoch, key, descriptor)
        return Nearest(0)

    def open(self, key: str) -> int | None:
        """A descriptor of one's own of the state with this key, which counts as used now."""
        with self._lock:
            file = self._files.get(key)
            if file is not None and file.descriptor is not None:
                self._files.move_to_end(key)
                return os.dup(file.descriptor)
        if self.folder is None:
            return None
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY)
        except OSError:  # never written, or removed in the meantime
            self.remove(key)
            return None
        with suppress(OSError):
            os.utime(self._path(key))  # the order of use, for the next process
        size = os.fstat(descriptor).st_size
        with self._lock:  # another process may have written it
            self._set(key, _File(size, None))
            self._make_room()
        return descriptor

    def put(self, key: str, size: int, descriptor: int | None, left: str | None = None) -> None:
        """Keep the state with this key, which somebody has written; its file belongs to us now.

        `left` is the state that it was trained from: it is the first to go.
        """
        with self._lock:
            self._count += 1
            if self.folder and self._count % LOOK_AROUND == 0:
                self._adopt(self.folder)
            if key in self._files and descriptor is not None:
                os.close(descriptor)  # another has written the same
            else:
                self._set(key, _File(size, descriptor))
            self._files.move_to_end(key)
            if left in self._files and left != key:
                self._files.move_to_end(left, last=False)
            if size > self.budget:  # the others may stay
                self._files.move_to_end(key, last=False)
            self._make_room()

    def remove(self, key: str) -> None:
        """It is no state, or gone."""
        with self._lock:
            self._drop(key)

    def close(self) -> None:
        """Forget what has no name."""
        with self._lock:
            for key in [key for key, file in self._files.items() if file.descriptor is not None]:
                self._drop(key)

    def _set(self, key: str, file: _File) -> None:
        """Needs the lock."""
        before = self._files.get(key)
        self._used += file.size - (before.size if before else 0)
        self._files[key] = file
        self._files.move_to_end(key)

    def _make_room(self) -> None:
        """Needs the lock."""
        while self._files and (self._used > self.budget or self._opened() > self._most):
            self._drop(next(iter(self._files)))

    def _opened(self) -> int:
        return 0 if self.folder else len(self._files)

    def _drop(self, key: str) -> None:
        """Needs the lock."""
        file = self._files.pop(key, None)
        if file is not None:
            self._used -= file.size
            if file.descriptor is not None:
                os.close(file.descriptor)
        if self.folder:
            with suppress(OSError):
                self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}{SUFFIX}"

    def _adopt(self, folder: Path) -> None:
        """Know what others have put there, too. Needs the lock."""
        found: list[tuple[float, str, int]] = []
        for file in folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):  # of another process, just now
                about = file.stat()
                found.append((about.st_mtime, file.stem, about.st_size))
        for _, key, size in sorted(found):
            if key in self._files:
                continue
            self._set(key, _File(size, None))
        self._make_room()


def allow_many_files() -> None:
    """Let this process have as many files open as it may: sockets and states are files."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # where infinity is said but not meant
            if soft < hard:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _most_open() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource is not None else 1024
    return limit // OPEN_SHARE
