"""A program on a leash ends with whoever started it, and nothing of it is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from live import eventually, is_running

from ml_trainer_env.leash import NOT_FOUND, Leashed

# Tells the number of its own process and of one that it has started, and stays.
FAMILY = 'sleep 600 & echo "$$ $!" > pids.new; mv pids.new pids; wait'
STUBBORN = f"trap '' TERM INT HUP; {FAMILY}"


def family(folder: Path) -> list[int]:
    pids = folder / "pids"
    eventually(pids.exists)
    return [int(pid) for pid in pids.read_text().split()]


def gone(pids: list[int]) -> None:
    eventually(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("script", [FAMILY, STUBBORN])
def test_it_ends_with_its_starter_however_that_ends(
    tmp_path: Path, script: str, number: signal.Signals
) -> None:
    code = f"""
import signal
from ml_trainer_env.leash import Leashed
signal.signal(signal.SIGINT, signal.SIG_DFL)
Leashed(["sh", "-c", {script!r}], cwd={str(tmp_path)!r}).wait()
"""
    with subprocess.Popen([sys.executable, "-c", code]) as starter:
        pids = family(tmp_path)
        assert all(map(is_running, pids))
        starter.send_signal(number)
    gone(pids)


@pytest.mark.parametrize("script", [FAMILY, STUBBORN])
@pytest.mark.parametrize("patience", [0.0, 0.3])
def test_end_leaves_nothing(tmp_path: Path, script: str, patience: float) -> None:
    program = Leashed(["sh", "-c", script], cwd=tmp_path)
    pids = family(tmp_path)
    program.end(patience)
    assert program.returncode is not None
    gone(pids)


def test_a_signal_reaches_it_and_it_may_answer(tmp_path: Path) -> None:
    program = Leashed(["sh", "-c", f"trap 'exit 7' TERM; {FAMILY}"], cwd=tmp_path)
    pids = family(tmp_path)
    program.terminate()
    assert program.wait(10) == 7
    gone(pids)
    program.end()


def test_what_it_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    program = Leashed(["sh", "-c", FAMILY.replace("wait", "exit 3")], cwd=tmp_path)
    assert program.wait(10) == 3
    gone(family(tmp_path))
    program.end()


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 41", 41), ("kill -SEGV $$", 128 + 11)]
)
def test_its_exit_status_is_told(script: str, status: int) -> None:
    program = Leashed(["sh", "-c", script])
    program.wait(10)
    program.end(1.0)
    assert program.returncode == status


def test_a_program_that_is_not_there() -> None:
    program = Leashed(["/no/such/program"], stderr=subprocess.PIPE)
    with program:
        assert program.wait(10) == NOT_FOUND
        assert program.stderr is not None
        assert b"/no/such/program" in program.stderr.read()


def test_it_has_no_standard_input_and_the_environment_it_was_given(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("wb") as file:
        program = Leashed(["sh", "-c", 'cat; echo "$A$PYTHONPATH"'], env={"A": "x"}, stdout=file)
    assert program.wait(10) == 0
    program.end()
    assert out.read_text() == "x\n"
