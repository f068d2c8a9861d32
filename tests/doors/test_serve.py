"""The command that serves: its port comes first, and it is one process."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from live import free_port

from ml_trainer_env.server import serve

SLOW_TO_IMPORT = ("torch", "openenv", "fastapi", "fastmcp", "uvicorn", "gradio")
COMMANDS = [
    ("-m", "ml_trainer_env.cli", "serve"),
    ("-m", "ml_trainer_env.server.app"),
    ("-c", "from ml_trainer_env.server.serve import main; main()"),
]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_taken_port_is_told_in_a_line(command: tuple[str, ...], host: str, taken: int) -> None:
    told = subprocess.run(
        [sys.executable, *command, "--host", host, "--port", str(taken)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 1
    line = rf"cannot listen on {re.escape(host)}, port {taken}: .*in use\n"
    assert re.fullmatch(line, told.stderr)
    assert told.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--host", "no.such.host.invalid"), 1, "cannot listen on no.such.host.invalid"),
        (("--host", "192.0.2.1"), 1, "cannot listen on 192.0.2.1, port 8000: "),
        (("--port", "65536"), 2, "--port: must be from 0 to 65535; got 65536"),
        (("--port", "-1"), 2, "--port: must be from 0 to 65535; got -1"),
    ],
)
def test_an_address_that_cannot_be_had_is_too(
    arguments: tuple[str, ...], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        serve.main(arguments)
    assert ended.value.code == status
    told = capsys.readouterr().err
    assert told.startswith(said)
    assert told.count("\n") == 1


def test_nothing_slow_is_imported_before(taken: int) -> None:
    code = f"""
import json, sys
sys.argv[1:] = ["--host", "127.0.0.1", "--port", "{taken}"]
from ml_trainer_env.server import serve
try:
    serve.main()
except SystemExit:
    print(json.dumps(sorted(sys.modules)))
"""
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert not set(SLOW_TO_IMPORT) & set(loaded)


def test_who_connects_early_waits_and_nobody_else_gets_the_port() -> None:
    listening = serve.listen("127.0.0.1", 0)
    try:
        port = listening[0].getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            pass
        with pytest.raises(OSError, match="in use"):
            serve.listen("127.0.0.1", port)
    finally:
        for listener in listening:
            listener.close()
    for listener in serve.listen("127.0.0.1", port):  # at once again, after connections
        listener.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_every_address_of_a_name_is_listened_to_on_one_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = [("127.0.0.1", 0), ("127.0.0.2", 0), ("192.0.2.1", 0)]  # the last is not here
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    six = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))] if has_ipv6() else []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [*answer, *six, answer[0]])
    listening = serve.listen("name", 0)
    here = {"127.0.0.1", "127.0.0.2", *(place[4][0] for place in six)}
    assert {listener.getsockname()[0] for listener in listening} == here
    assert len({listener.getsockname()[1] for listener in listening}) == 1
    for listener in listening:
        listener.close()


def test_what_uvicorn_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    import uvicorn

    seen: list[uvicorn.Config] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        seen.append(server.config)
        server.started = True
        for listener in sockets:
            listener.close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setitem(os.environ, "WEB_CONCURRENCY", "2")
    monkeypatch.setattr(uvicorn.Config, "configure_logging", lambda _: None)
    with caplog.at_level("INFO", "uvicorn.error"):
        port = free_port()
        serve.main(["--host", "127.0.0.1", "--port", str(port)])
    assert seen[0].workers == 1
    assert f"listening on http://127.0.0.1:{port}" in caplog.text
    assert "WEB_CONCURRENCY does not count" in caplog.text
