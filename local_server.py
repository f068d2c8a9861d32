"""A server in a process of its own while a block lasts; it ends whatever happens, `kill -9` too."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from ml_trainer_env.agents.session import CONNECTION_ERRORS
from ml_trainer_env.leash import Leashed
from ml_trainer_env.variables import USAGE, SettingsError

ENVIRONMENT = (sys.executable, "-m", "ml_trainer_env.server.app")
LOGS = Path("outputs") / "logs"

START_SECONDS = 120.0  # reading everything from a cold disk takes long
STOP_SECONDS = 20.0
LOG_TAIL = 15  # lines of the server's log that are shown when it fails


class ServerError(Exception):
    """The server does not serve; the message is for the user."""


@contextmanager
def local_server(
    log: Path,
    program: Sequence[str] = ENVIRONMENT,
    health: str = "/health",
    port: int = 0,
    patience: float = START_SECONDS,
) -> Generator[str, None, None]:
    """`program` serving on a free port of this machine; yields its base URL, then stops it.

    The port is `port`, where that one is free.

    It is told `--host` and `--port`, and serves once `health` answers, in `patience` seconds at
    most. Its output goes to `log`.
    Raises `ServerError`, with the end of the log, when it does not start or when it ends before it
    is stopped, and `SettingsError` when it ends because of its settings.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    port = _free_port(port)
    command = [*program, "--host", "127.0.0.1", "--port", str(port)]
    alone = os.environ | {"WEB_CONCURRENCY": "1"}  # what uvicorn would start otherwise
    with log.open("wb") as out:  # on a leash: Ctrl-C is for the demo, which then stops the server
        server = Leashed(command, stdout=out, stderr=subprocess.STDOUT, env=alone)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(server, url + health, log, patience)
        yield url
    except CONNECTION_ERRORS as error:
        with suppress(subprocess.TimeoutExpired):  # a client hears of the end before we do
            server.wait(1)
        if server.returncode is None:
            raise
        raise _ended(server, log) from error
    finally:
        server.end(STOP_SECONDS)


def _wait_until_healthy(server: Leashed, address: str, log: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise _ended(server, log)
        with suppress(httpx.TransportError):
            # trust_env: a proxy that the environment names is not for this machine.
            if httpx.get(address, timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise ServerError(f"the server did not answer {address} in {patience:g} s{_log_tail(log)}")


def _ended(server: Leashed, log: Path) -> ServerError | SettingsError:
    """What to raise: it has said itself which settings it cannot use."""
    if server.returncode == USAGE and (lines := _lines(log)):
        return SettingsError(lines[-1])
    return ServerError(f"the server ended with status {server.returncode}{_log_tail(log)}")


def _log_tail(log: Path) -> str:
    return "\n".join([f"; the end of {log}:", *(f"  {line}" for line in _lines(log)[-LOG_TAIL:])])


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def _free_port(preferred: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # just left is free, too
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
