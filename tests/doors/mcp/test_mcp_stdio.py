"""The standard MCP door over stdio: a real process, training real networks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from mcp_play import HELLO, call, request, run, tool_call

from ml_trainer_env.models import Grade
from ml_trainer_env.server.doors.mcp.visitor import BEGIN


def test_a_desktop_client_plays_for_real_over_stdio() -> None:
    reported: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        reported.append(progress)

    async def scenario() -> Grade | None:
        transport = StdioTransport(sys.executable, ["-m", "ml_trainer_env.cli", "mcp"])
        async with Client(transport, progress_handler=note, init_timeout=60) as session:
            await call(session, BEGIN, task_id="easy_mnist")
            await call(session, "configure_training", learning_rate=0.002)
            trained = await call(session, "run_epochs", num_epochs=3)
            assert trained.val_accuracy is not None
            assert trained.val_accuracy > 0.8
            return (await call(session, "submit_model")).grade

    grade = run(scenario, seconds=100)
    assert grade is not None
    assert grade.hidden_test_accuracy is not None
    assert grade.hidden_test_accuracy > 0.8
    assert reported == [1, 2, 3]


@contextmanager
def over_a_pipe() -> Iterator[subprocess.Popen[str]]:
    """The server with both ends of the conversation in our hands."""
    command = [sys.executable, "-m", "ml_trainer_env.server.doors.mcp.stdio"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as server:
        try:
            yield server
        finally:
            server.kill()


def ask(server: subprocess.Popen[str], *messages: dict[str, Any]) -> None:
    assert server.stdin is not None
    server.stdin.write("".join(json.dumps(message) + "\n" for message in messages))
    server.stdin.flush()


def answer(server: subprocess.Popen[str], number: int) -> dict[str, Any]:
    """The answer to this request. Every line is one of the protocol."""
    assert server.stdout is not None
    for line in server.stdout:
        message = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        if message.get("id") == number:
            return message["result"]
    raise AssertionError("the server ended")


OPENING = (
    request(1, "initialize", **HELLO),
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    tool_call(2, BEGIN, task_id="hard_cifar"),
    tool_call(3, "configure_training"),
)


def test_it_ends_with_its_client_in_the_middle_of_a_training() -> None:
    with over_a_pipe() as server:
        ask(server, {"jsonrpc": "2.0", "surprise": True})
        ask(server, *OPENING[:3])
        assert answer(server, 2)["structuredContent"]["task_id"] == "hard_cifar"
        ask(server, OPENING[3])
        answer(server, 3)
        training = tool_call(4, "run_epochs", num_epochs=20)
        training["params"]["_meta"] = {"progressToken": "first"}
        ask(server, training)
        assert server.stdout is not None
        assert json.loads(server.stdout.readline())["method"] == "notifications/progress"
        assert server.stdin is not None
        server.stdin.close()
        rest = server.stdout.read()
        assert server.wait(30) == 0
        assert '"id":4' not in rest  # 20 epochs take long


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(stop: signal.Signals) -> None:
    with over_a_pipe() as server:
        ask(server, *OPENING[:1])
        answer(server, 1)
        server.send_signal(stop)
        assert server.wait(30) == -stop
