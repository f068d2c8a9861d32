"""Every epoch ever trained, by the key of its run: what came of it, and how long that took.

One SQLite table; in a file it is shared by all servers and evaluations of a machine and outlives
them, without one it is memory of this process. Guarantees:
- `get` gives exactly the numbers that were put, bit for bit, or None. A file that is damaged, or
  not ours, counts as absent: it is put aside and begun anew.
- Any thread and any number of processes may use it. Where it cannot be written, or somebody holds
  it for long, an epoch is not remembered, and nothing else happens.
- At most about `most` epochs are kept; the oldest go first.
"""

# pyright: strict

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ml_trainer_env.events import WindowReport
from ml_trainer_env.server.runtime.orders import METRICS, Outcome

T = TypeVar("T")

log = logging.getLogger("uvicorn.error")  # uvicorn's own: where an operator looks

NAME = "records.sqlite"
VERSION = 2  # of the table; raise it with every change
MOST = 1_000_000  # epochs in a file; about 150 bytes each
MOST_IN_MEMORY = 100_000
TRIMMED = 1000  # epochs, between two looks at how many there are
PATIENCE = 2.0  # seconds to wait for another process that writes

_TABLE = f"""
CREATE TABLE IF NOT EXISTS epochs (
    key BLOB NOT NULL UNIQUE,
    {", ".join(f"{name} REAL" for name in METRICS)},
    window TEXT,
    seconds REAL NOT NULL,
    test_accuracy REAL
)"""
_COLUMNS = ", ".join(METRICS)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an epoch."""

    outcome: Outcome
    seconds: float  # that it took
    test_accuracy: float | None = None  # of the run's best checkpoint, once it was graded


class Records:
    """The table, in `file` or in memory."""

    def __init__(self, file: Path | None = None, most: int | None = None) -> None:
        self._file = file
        self._most = most or (MOST if file else MOST_IN_MEMORY)
        self._lock = threading.Lock()
        self._written = 0
        self._table = self._opened()

    def get(self, key: str) -> Known | None:
        """What is known of the epoch after which a run has this key."""

        def find(table: sqlite3.Connection) -> Known | None:
            select = f"SELECT seconds, test_accuracy, window, {_COLUMNS} FROM epochs WHERE key = ?"
            row = table.execute(select, (bytes.fromhex(key),)).fetchone()
            if row is None:
                return None
            seconds, accuracy, text, *metrics = row
            window = None if text is None else WindowReport.model_validate_json(text)
            return Known(Outcome(tuple(metrics), window), seconds, accuracy)

        return self._safely(find)

    def put(self, key: str, outcome: Outcome, seconds: float) -> None:
        """Remember an epoch; one that is known stays as it is."""

        def insert(table: sqlite3.Connection) -> None:
            window = outcome.window and outcome.window.model_dump_json()
            row = (bytes.fromhex(key), *outcome.metrics, window, seconds)
            marks = ", ".join("?" * len(row))
            columns = f"key, {_COLUMNS}, window, seconds"
            table.execute(f"INSERT OR IGNORE INTO epochs ({columns}) VALUES ({marks})", row)
            self._written += 1
            if self._written % TRIMMED == 0:
                self._trim(table)

        self._safely(insert)

    def put_test_accuracy(self, key: str, accuracy: float) -> None:
        """Remember the grade of a run whose last epoch is known."""

        def update(table: sqlite3.Connection) -> None:
            change = "UPDATE epochs SET test_accuracy = ? WHERE key = ?"
            table.execute(change, (accuracy, bytes.fromhex(key)))

        self._safely(update)

    def __len__(self) -> int:
        count = self._safely(lambda table: table.execute("SELECT count(*) FROM epochs").fetchone())
        return count[0] if count else 0

    def close(self) -> None:
        with self._lock:
            if self._table is not None:
                self._table.close()
                self._table = None

    def _safely(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """`work(table)`; None where that cannot be done."""
        with self._lock:
            if self._table is None:
                return None
            try:
                return work(self._table)
            except sqlite3.OperationalError as error:  # a full disk, another who holds it
                log.warning("%s: %s; an epoch is not remembered", self._file, error)
            except sqlite3.DatabaseError as error:  # damaged meanwhile
                log.warning("%s: %s; it is begun anew", self._file, error)
                self._table.close()
                self._table = self._begun_anew()
            return None

    def _trim(self, table: sqlite3.Connection) -> None:
        newest = table.execute("SELECT max(rowid) FROM epochs").fetchone()[0]
        table.execute("DELETE FROM epochs WHERE rowid <= ?", (newest - self._most,))

    def _opened(self) -> sqlite3.Connection | None:
        try:
            return _connected(self._file)
        except sqlite3.OperationalError as error:  # not writable, or held for long
            log.warning("%s: %s; epochs are remembered in memory", self._file, error)
            return _connected(None)
        except sqlite3.DatabaseError as error:
            log.warning("%s: %s; it is begun anew", self._file, error)
            return self._begun_anew()

    def _begun_anew(self) -> sqlite3.Connection | None:
        """What was there stays beside it, for whoever wants to look."""
        assert self._file is not None, "memory is not damaged"
        try:
            self._file.replace(self._file.with_suffix(".unreadable"))
            for rest in ("-wal", "-shm"):
                Path(f"{self._file}{rest}").unlink(missing_ok=True)
            return _connected(self._file)
        except (OSError, sqlite3.DatabaseError) as error:
            log.warning("%s: %s; epochs are remembered in memory", self._file, error)
            return _connected(None)


def _connected(file: Path | None) -> sqlite3.Connection:
    """Every later statement is a transaction of its own. Raises `sqlite3.DatabaseError`."""
    table = sqlite3.connect(
        file or ":memory:", timeout=PATIENCE, isolation_level=None, check_same_thread=False
    )
    try:
        # The log of writes is synchronised when it is folded in, so a killed process loses nothing.
        with suppress(sqlite3.OperationalError):  # another process may be doing so
            table.execute("PRAGMA journal_mode = WAL")
        table.execute("PRAGMA synchronous = NORMAL")
        table.execute("BEGIN IMMEDIATE")  # another process may be making the same table
        version = table.execute("PRAGMA user_version").fetchone()[0]
        tables = table.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (version, tables) != (0, 0) and version != VERSION:
            raise sqlite3.DatabaseError("it is no file of this version's records")
        table.execute(_TABLE)
        table.execute(f"PRAGMA user_version = {VERSION}")
        table.execute("COMMIT")
    except sqlite3.DatabaseError:
        table.close()
        raise
    return table
