"""A server that a test can talk to, and patience."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ml_trainer_env.server.app import build


def with_page(*arguments: Any, **options: Any) -> ASGIApp:
    """`server.app.build`, where the page is enabled. Gradio makes an event loop, and leaves it
    open, for each of its locks where none runs.
    """

    async def inside() -> ASGIApp:
        return build(*arguments, **options)

    with ThreadPoolExecutor(1) as thread:  # Playwright's own loop is running in the caller's
        return thread.submit(lambda: asyncio.run(inside())).result()


@contextmanager
def serving(app: ASGIApp, *, bind: int = 0, **options: Any) -> Iterator[str]:
    """`app` behind uvicorn with these options, in a thread of this process; yields its base URL.

    `bind`: the port; 0 is any that is free.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", bind))
        port = listener.getsockname()[1]
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
        )
        thread.start()
        try:
            eventually(lambda: server.started)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(15)
            assert not thread.is_alive(), "the server did not stop"


def eventually(condition: Callable[[], object], timeout: float = 15.0) -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


def is_running(pid: int) -> bool:
    """A process that has ended, and that nobody has asked about, does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that this one has started and that have not been waited for."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found
