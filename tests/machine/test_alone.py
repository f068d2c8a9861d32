"""A server is one process: it refuses to be several, whoever starts it, and may be one anyhow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest
from checkout import HELPERS
from live import children, eventually, free_port, is_running

from ml_trainer_env.server import app
from ml_trainer_env.server.machine import alone
from ml_trainer_env.server.session import process
from ml_trainer_env.server.settings import Settings

UVICORN = ("-m", "uvicorn", "alone_app:app", "--log-level", "info")
SCRIPT = """
import sys
import uvicorn
if __name__ == "__main__":
    uvicorn.run("alone_app:app", port=int(sys.argv[-1]), workers={workers})
"""
# A supervisor of no known kind: its children serve the socket that it has opened.
SUPERVISOR = """
import socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[-1])))
child = "from ml_trainer_env.server.machine import alone; import time; time.sleep({pause}); "
child += "alone.refuse_company(); time.sleep(600)"
processes = [
    subprocess.Popen([sys.executable, "-c", child], pass_fds=[listener.fileno()])
    for _ in range({workers})
]
print([process.pid for process in processes], flush=True)
for process in processes:
    process.wait()
"""

Start = Callable[..., tuple["subprocess.Popen[str]", int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start Python with these arguments and a port: the process, and the port."""
    started: list[subprocess.Popen[str]] = []

    def run(
        *arguments: str, variables: Mapping[str, str] = {}
    ) -> tuple[subprocess.Popen[str], int]:
        port = free_port()
        with_port = arguments if "-c" in arguments else (*arguments, "--port")
        program = subprocess.Popen(
            [sys.executable, *with_port, str(port)],
            cwd=HELPERS,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(program)
        return program, port

    yield run
    for program in started:
        for pid in children(program.pid):
            os.kill(pid, 9)
        program.kill()
        program.communicate()


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ((*UVICORN, "--workers", "2"), {}),
        (UVICORN, {"WEB_CONCURRENCY": "2"}),
        pytest.param(UVICORN, {"UVICORN_WORKERS": "3"}, marks=pytest.mark.slow),
        pytest.param(("-c", SCRIPT.format(workers=2)), {}, marks=pytest.mark.slow),
        (("-c", SUPERVISOR.format(workers=2, pause=1.0)), {}),
    ],
)
def test_several_processes_are_refused_with_their_supervisor(
    start: Start, arguments: tuple[str, ...], variables: Mapping[str, str]
) -> None:
    program, _ = start(*arguments, variables=variables)
    eventually(lambda: children(program.pid))
    pids = children(program.pid)
    said, _ = program.communicate(timeout=60)
    assert alone.REFUSAL in said
    assert "Traceback" not in said
    eventually(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ((*UVICORN, "--workers", "1"), {"WEB_CONCURRENCY": "2"}),
        ((*UVICORN, "--reload", "--reload-include", "nothing"), {}),
        pytest.param(UVICORN, {}, marks=pytest.mark.slow),
        pytest.param(("-c", SCRIPT.format(workers=1)), {}, marks=pytest.mark.slow),
    ],
)
def test_one_process_serves(
    start: Start, arguments: tuple[str, ...], variables: Mapping[str, str]
) -> None:
    program, port = start(*arguments, variables=variables)

    def serves() -> bool:
        assert program.poll() is None
        try:
            return httpx.get(f"http://127.0.0.1:{port}/").status_code == 404
        except httpx.TransportError:
            return False

    eventually(serves, timeout=60)


def test_a_lonely_child_of_any_supervisor_serves(start: Start) -> None:
    program, _ = start("-c", SUPERVISOR.format(workers=1, pause=0.0))
    assert program.stdout is not None
    (child,) = eval(program.stdout.readline())
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(2)
    assert is_running(child)


@pytest.mark.parametrize(
    ("runner", "expected"), [("pool", ["alone?"]), ("inline", ["alone?", "load", "alone?"])]
)
def test_the_server_asks_before_it_loads_and_again(
    monkeypatch: pytest.MonkeyPatch, runner: Any, expected: list[str]
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(app, "current", lambda: Settings(runner=runner))
    monkeypatch.setattr(alone, "refuse_company", lambda: steps.append("alone?"))
    monkeypatch.setattr(process, "load", lambda: steps.append("load"))
    app.load()
    assert steps == expected
