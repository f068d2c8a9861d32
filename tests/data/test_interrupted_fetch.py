"""Whatever ends a process that fetches data, the package managers that it has started end with it.

Their place is taken by scripts that never end, and no mirror is reached.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from live import children, eventually, free_port, is_running

SECONDS = 20.0  # within which it must be over on a busy machine; it takes one
CLIENT = """#!/bin/sh
sleep 600 &
echo "$$ $!" > {pids}.new
/bin/mv {pids}.new {pids}
wait
"""
DATA = ("-m", "ml_trainer_env.cli", "data", "fetch", "fashion_mnist")
COMMANDS = {
    "data fetch": DATA,
    "serve": ("-m", "ml_trainer_env.cli", "serve", "--host", "127.0.0.1"),
    "uvicorn": ("-m", "uvicorn", "ml_trainer_env.server.app:app"),
    "mcp": ("-m", "ml_trainer_env.cli", "mcp"),
}


class Fetching(NamedTuple):
    """A process, what it has started, and the folder of its temporary files."""

    process: subprocess.Popen[bytes]
    started: list[int]
    temporary: Path


@pytest.fixture
def fetching(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[Fetching]]:
    """One for each signal, in the middle of a fetch."""
    command = COMMANDS[request.param]
    with ExitStack() as processes:
        found = [_start(tmp_path / str(n), command, processes) for n in range(len(SIGNALS))]
        yield [_in_the_middle(*each) for each in found]
        for process, _ in found:
            process.kill()


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def _start(
    folder: Path, command: tuple[str, ...], processes: ExitStack
) -> tuple[subprocess.Popen[bytes], Path]:
    folder.mkdir()
    (folder / "tmp").mkdir()
    for program in ("apt-get", "npm", "pip", "uv"):
        script = folder / program
        script.write_text(CLIENT.format(pids=folder / "pids"))
        script.chmod(0o755)
    nowhere = "http://127.0.0.1:9"
    variables = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "ML_TRAINER_DATA_DIR": str(folder / "data"),
        "TMPDIR": str(folder / "tmp"),
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "PIP_INDEX_URL": nowhere,
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_NO_INDEX": "1",
    }
    if "--host" in command or "uvicorn" in command:
        command = (*command, "--port", str(free_port()))
    process = processes.enter_context(
        subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    )
    return process, folder


def _in_the_middle(process: subprocess.Popen[bytes], folder: Path) -> Fetching:
    pids = folder / "pids"
    eventually(lambda: pids.exists() or process.poll() is not None, timeout=100)
    assert process.poll() is None
    started = [*map(int, pids.read_text().split()), *children(process.pid)]
    return Fetching(process, started, folder / "tmp")


@pytest.mark.parametrize(
    "fetching",
    ["data fetch", *(pytest.param(name, marks=pytest.mark.slow) for name in [*COMMANDS][1:])],
    indirect=True,
)
def test_nothing_is_left(fetching: list[Fetching]) -> None:
    for number, (process, started, temporary) in zip(SIGNALS, fetching, strict=True):
        assert all(map(is_running, started))
        process.send_signal(number)
        process.wait(SECONDS)
        eventually(lambda pids=started: not any(map(is_running, pids)), timeout=SECONDS)
        if number != signal.SIGKILL:  # nobody is there to remove its files
            assert not [*temporary.iterdir()]
