"""The store of training states by their content key: memory first, then a folder.

Guarantees:
- `get(key)` gives the state with exactly the bits that were put, or None. Nothing else: a file that
  is damaged, cut short or not ours counts as absent and is removed.
- Neither budget is exceeded. The least recently used goes first, from memory to the folder and
  from the folder for good; what is gone can be trained again.
- Any thread may call; reading and writing files holds nobody else up.
"""

from __future__ import annotations

import logging
import os
import struct
import tempfile
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from ml_trainer_env.server.runtime import state_bytes
from ml_trainer_env.server.runtime.state_bytes import UnreadableState
from ml_trainer_env.server.trainer import TrainingState

log = logging.getLogger(__name__)

SUFFIX = ".state"
UNFINISHED = ".unfinished"
_CHECKSUM = struct.Struct("<I")  # before the state in a file; against damage, not against malice


class Snapshots:
    """At most `budget` bytes of tensors in memory; what does not fit is in `folder`, if any."""

    def __init__(self, budget: int, folder: SnapshotFolder | None = None) -> None:
        self.folder = folder
        self._budget = budget
        self._used = 0
        self._states: OrderedDict[str, TrainingState] = OrderedDict()  # the last used at the end
        self._holders: Counter[int] = Counter()  # of each tensor, by id: states share them
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes of tensors in memory; one that several states hold counts once."""
        return self._used

    def __len__(self) -> int:
        """States in memory."""
        return len(self._states)

    def get(self, key: str) -> TrainingState | None:
        """The state with this key, from memory or from the folder."""
        with self._lock:
            state = self._states.get(key)
            if state is not None:
                self._states.move_to_end(key)
                return state
        state = self.folder.get(key) if self.folder else None
        if state is not None:
            self.put(state)
        return state

    def put(self, state: TrainingState) -> None:
        """Keep `state`, as the most recently used."""
        with self._lock:
            if state.key not in self._states:
                self._states[state.key] = state
                self._count(state, 1)
            self._states.move_to_end(state.key)
            evicted: list[TrainingState] = []
            while self._used > self._budget:
                _, oldest = self._states.popitem(last=False)
                self._count(oldest, -1)
                evicted.append(oldest)
        if self.folder:
            for each in (state, *evicted):  # written at once, so a killed process loses nothing
                self.folder.put(each)

    def _count(self, state: TrainingState, change: int) -> None:
        """One holder more or less of each of the state's tensors."""
        for tensor in _tensors(state):
            before = self._holders[id(tensor)]
            self._holders[id(tensor)] = before + change
            if before == 0:
                self._used += tensor.nbytes
            elif before + change == 0:
                self._used -= tensor.nbytes
                del self._holders[id(tensor)]


class SnapshotFolder:
    """States in files of one folder, together at most `budget` bytes."""

    def __init__(self, path: Path, budget: int) -> None:
        """Goes on with the files that an earlier process left."""
        self.path = path
        self._budget = budget
        self._lock = threading.Lock()
        path.mkdir(parents=True, exist_ok=True)
        for left in path.glob(f"*{UNFINISHED}"):
            left.unlink(missing_ok=True)
        found: list[tuple[float, str, int]] = []
        for file in path.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):  # of another process, just now
                about = file.stat()
                found.append((about.st_mtime, file.stem, about.st_size))
        self._sizes = OrderedDict((key, size) for _, key, size in sorted(found))
        self._make_room()

    @property
    def used(self) -> int:
        """Bytes of files."""
        return sum(self._sizes.values())

    def get(self, key: str) -> TrainingState | None:
        """The state with this key; a file that does not hold it is removed."""
        file = self._file(key)
        try:
            content = file.read_bytes()
            checksum, body = content[: _CHECKSUM.size], content[_CHECKSUM.size :]
            if _checksum(body) != checksum:
                raise UnreadableState("its checksum is wrong")
            state = state_bytes.unpack(body)
            if state.key != key:
                raise UnreadableState("it holds another state")
            os.utime(file)  # the order of use, for the next process
        except UnreadableState as error:
            log.warning("%s: %s; it is trained again", file, error)
            self._remove(key)
            return None
        except OSError:  # never written, or removed in the meantime
            with self._lock:
                self._sizes.pop(key, None)
            return None
        with self._lock:
            self._sizes[key] = len(content)
            self._sizes.move_to_end(key)
        return state

    def put(self, state: TrainingState) -> None:
        """Write the state, whole or not at all. A full disk only costs the file."""
        with self._lock:
            if state.key in self._sizes:
                self._sizes.move_to_end(state.key)
                return
        body = state_bytes.pack(state)
        size = _CHECKSUM.size + len(body)
        if size > self._budget:
            return
        with self._lock:
            self._make_room(size)
            self._sizes[state.key] = size
        try:
            _write(self._file(state.key), _checksum(body), body)
        except OSError as error:
            log.warning("%s: %s; the state was not written", self.path, error)
            self._remove(state.key)
        with self._lock:
            if state.key not in self._sizes:  # had to make room while it was being written
                self._file(state.key).unlink(missing_ok=True)

    def _make_room(self, size: int = 0) -> None:
        """Remove the least recently used until `size` bytes more fit. Needs the lock."""
        while self._sizes and self.used + size > self._budget:
            key, _ = self._sizes.popitem(last=False)
            self._file(key).unlink(missing_ok=True)

    def _remove(self, key: str) -> None:
        with self._lock:
            self._sizes.pop(key, None)
            self._file(key).unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self.path / f"{key}{SUFFIX}"


def _checksum(body: bytes) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(body))


def _write(file: Path, *parts: bytes) -> None:
    """Aside and then into place: another reader sees all of it or nothing."""
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=UNFINISHED, delete=False) as aside:
        try:
            for part in parts:
                aside.write(part)
            aside.close()
            Path(aside.name).replace(file)
        except OSError:
            Path(aside.name).unlink(missing_ok=True)
            raise


def _tensors(state: TrainingState) -> Iterator[Tensor]:
    """All that weighs something in a state."""
    for checkpoint in (state.current, state.best_checkpoint):
        yield checkpoint.weights
        yield checkpoint.statistics
    yield from state.moments
