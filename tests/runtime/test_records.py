"""Every epoch ever trained, bit for bit, whoever writes the file and whatever happens to it."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_trainer_env.server.runtime import records as tables
from ml_trainer_env.server.runtime.orders import METRICS, Metrics, Outcome
from ml_trainer_env.server.runtime.records import NAME, Known, Records

WIDTH = len(METRICS)
DIVERGED = (None,) * WIDTH


def key(number: int) -> str:
    return f"{number:064x}"


def outcome(number: int) -> Outcome:
    """Different ones, with all their bits."""
    return Outcome(tuple(math.sqrt(number * WIDTH + n + 2) for n in range(WIDTH)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / NAME


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test opens is closed after it."""
    opened: list[sqlite3.Connection] = []
    connected = tables._connected

    def noted(file: Path | None) -> sqlite3.Connection:
        opened.append(connected(file))
        return opened[-1]

    monkeypatch.setattr(tables, "_connected", noted)
    yield
    for table in opened:
        table.close()


def filled(file: Path | None, count: int = 3) -> Records:
    records = Records(file)
    for number in range(count):
        records.put(key(number), outcome(number), number / 3)
    return records


def assert_filled(records: Records, count: int = 3) -> None:
    found = [records.get(key(number)) for number in range(count)]
    assert found == [Known(outcome(number), number / 3) for number in range(count)]
    assert len(records) == count


# What is known --------------------------------------------------------------------------------


@pytest.mark.parametrize("in_a_file", [True, False])
def test_what_was_put_is_known_and_nothing_else(file: Path, in_a_file: bool) -> None:
    records = filled(file if in_a_file else None)
    assert_filled(records)
    assert records.get(key(99)) is None
    records.close()


@given(
    st.lists(
        st.tuples(*[st.floats(0, allow_nan=False, allow_infinity=False)] * WIDTH)
        | st.just(DIVERGED),
        max_size=5,
    )
)
def test_every_bit_is_kept(values: list[Metrics]) -> None:
    records = Records()
    for number, each in enumerate(values):
        records.put(key(number), Outcome(each), 0.1)
    for number, each in enumerate(values):
        known = records.get(key(number))
        assert known is not None
        assert repr(known.outcome) == repr(Outcome(each))
    records.close()


def test_a_diverged_epoch_is_known(file: Path) -> None:
    filled(file).put(key(7), Outcome(DIVERGED), 0.5)
    assert Records(file).get(key(7)) == Known(Outcome(DIVERGED), 0.5)


def test_an_epoch_that_is_known_stays_as_it_is() -> None:
    records = filled(None)
    records.put(key(1), outcome(2), 9.0)
    assert_filled(records)


def test_a_grade_is_remembered_with_its_epoch(file: Path) -> None:
    records = filled(file)
    records.put_test_accuracy(key(1), 0.1 + 0.2)
    records.put_test_accuracy(key(99), 0.5)  # of an epoch that is not known
    assert records.get(key(1)) == Known(outcome(1), 1 / 3, 0.1 + 0.2)
    assert records.get(key(0)) == Known(outcome(0), 0.0)
    assert records.get(key(99)) is None
    assert Records(file).get(key(1)) == records.get(key(1))


def test_the_oldest_go_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TRIMMED", 10)
    for place in (file, None):
        records = Records(place, most=20)
        for number in range(95):
            records.put(key(number), outcome(number), 1.0)
            assert len(records) <= 20 + 10
        assert [number for number in range(95) if records.get(key(number))][-25:] == list(
            range(70, 95)
        )


# Files ----------------------------------------------------------------------------------------


def test_the_next_process_knows_them(file: Path) -> None:
    filled(file).close()
    again = Records(file)
    assert_filled(again)
    again.put(key(3), outcome(3), 1.0)
    assert_filled(Records(file), 4)


def test_two_stores_see_what_each_other_puts(file: Path) -> None:
    one, other = Records(file), Records(file)
    one.put(key(0), outcome(0), 1.0)
    other.put(key(1), outcome(1), 2.0)
    assert one.get(key(1)) == Known(outcome(1), 2.0)
    assert other.get(key(0)) == Known(outcome(0), 1.0)


WRITER = """
import sys
from pathlib import Path
from ml_trainer_env.server.runtime.orders import Outcome
from ml_trainer_env.server.runtime.records import Records

print("ready", flush=True)
sys.stdin.readline()
records = Records(Path(sys.argv[1]))
first, count = map(int, sys.argv[2:])
for number in range(first, first + count):
    records.put(f"{number:064x}", Outcome((number / 7,) * 6), number / 3)
    assert records.get(f"{number:064x}")
print("written", flush=True)
sys.stdin.readline()
"""


def writer(file: Path, first: int, count: int) -> subprocess.Popen[str]:
    """A process that makes the table where there is none, and writes once it is told to."""
    command = [sys.executable, "-c", WRITER, str(file), str(first), str(count)]
    started = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout
    assert started.stdout.readline() == "ready\n"
    return started


def test_processes_begin_a_file_at_once_and_write_at_once(file: Path) -> None:
    writers = [writer(file, first, 50) for first in (0, 50, 100, 150)]
    for each in writers:
        assert each.stdin
        each.stdin.write("now\n")
        each.stdin.flush()
    told = [each.communicate("end\n") for each in writers]
    assert told == [("written\n", "")] * 4
    assert not file.with_suffix(".unreadable").exists()
    records = Records(file)
    assert len(records) == 200
    assert records.get(key(77)) == Known(Outcome((77 / 7,) * 6), 77 / 3)


def test_a_killed_process_loses_nothing(file: Path) -> None:
    with writer(file, 0, 30) as killed:
        assert killed.stdin
        assert killed.stdout
        killed.stdin.write("now\n")
        killed.stdin.flush()
        assert killed.stdout.readline() == "written\n"
        os.kill(killed.pid, signal.SIGKILL)
        killed.stdin.close()
    assert len(Records(file)) == 30


def test_any_thread_may_use_it(file: Path) -> None:
    records = Records(file)

    def use(thread: int) -> None:
        for number in range(50):
            records.put(key(number), outcome(number), number / 3)
            assert records.get(key(number)) == Known(outcome(number), number / 3)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert_filled(records, 50)


# Files that are no such files -------------------------------------------------------------------


def _foreign(file: Path) -> None:
    with sqlite3.connect(file) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE notes (text)")
    other.close()


def _of_another_version(file: Path) -> None:
    filled(file).close()
    with sqlite3.connect(file) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()


def _damaged(file: Path) -> None:
    filled(file, 500).close()
    content = bytearray(file.read_bytes())
    content[:4096] = b"\xff" * 4096
    file.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b"no database at all, but long enough to be one" * 100),
        _foreign,
        _of_another_version,
        _damaged,
    ],
)
def test_what_is_no_file_of_ours_is_put_aside(
    file: Path, spoil: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(spoil)
    spoil(file)
    content = file.read_bytes()
    records = filled(file)
    assert_filled(records)
    assert "it is begun anew" in caplog.text
    assert file.with_suffix(".unreadable").read_bytes() == content
    assert_filled(Records(file))


def test_a_file_that_is_damaged_meanwhile_is_begun_anew(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(file, 2000).close()
    records = Records(file)
    with file.open("r+b") as damaged:  # all but the first page
        damaged.seek(4096)
        damaged.write(b"\xff" * (file.stat().st_size - 4096))
    assert records.get(key(1500)) is None
    assert "begun anew" in caplog.text
    records.put(key(0), outcome(0), 1.0)
    assert records.get(key(0)) == Known(outcome(0), 1.0)
    assert Records(file).get(key(0)) == Known(outcome(0), 1.0)


def test_where_no_file_can_be_it_is_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert_filled(filled(tmp_path))  # a folder
    assert_filled(filled(tmp_path / "gone" / NAME))
    assert caplog.text.count("remembered in memory") == 2


def test_while_another_holds_the_file_an_epoch_is_not_remembered(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tables, "PATIENCE", 0.01)
    records = filled(file)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    records.put(key(3), outcome(3), 1.0)
    assert "locked; an epoch is not remembered" in caplog.text
    assert records.get(key(0)) == Known(outcome(0), 0.0)  # readers are not in its way
    assert_filled(filled(file))  # whoever comes now remembers for itself
    holder.execute("ROLLBACK")
    holder.close()
    records.put(key(3), outcome(3), 1.0)
    assert_filled(records, 3 + 1)


def test_closed_it_knows_nothing_and_fails_at_nothing(file: Path) -> None:
    records = filled(file)
    records.close()
    records.put(key(9), outcome(9), 1.0)
    assert records.get(key(0)) is None
    assert len(records) == 0
    records.close()
