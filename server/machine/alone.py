"""A server is one process: sessions, places and the workers that train belong to it.

Of several processes behind one socket, each request would find another one, and most of them not
its session. Guarantee: whoever was started beside others like it refuses before it has loaded
anything, says so in one line, and leaves no supervisor behind that would start it again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ml_trainer_env.server.machine.ending import at_once

log = logging.getLogger("uvicorn.error")  # uvicorn's own: where an operator looks

START_FAILED = 3  # the exit status after which uvicorn and gunicorn do not try again
PATIENCE = 3.0  # seconds that a supervisor gets
REFUSAL = (
    "this server is one process, and it was told to be several: leave --workers, WEB_CONCURRENCY "
    "and the like out, or give 1; it trains on all cores as it is"
)


def refuse_company() -> None:
    """Return to whoever is alone; end the supervisor of whoever is not, and with it this process.

    To be asked before anything is loaded, and again afterwards: siblings may have come later.
    """
    if not (_was_told_of_others() or _siblings_at_the_socket()):
        return
    log.error(REFUSAL)
    with suppress(OSError):
        os.kill(os.getppid(), signal.SIGTERM)
    with at_once():  # it ends those that it has started; who ends before, it may start again
        time.sleep(PATIENCE)
    os._exit(START_FAILED)


def _configuration_of(server: str) -> Any:
    """What this server, uvicorn or hypercorn, has handed to a process that it started."""
    given: dict[str, Any] = getattr(multiprocessing.current_process(), "_kwargs", {})
    configured = given.get("config", object())
    return configured if configured.__class__.__module__.startswith(f"{server}.") else None


def _was_told_of_others() -> bool:
    configured = _configuration_of("uvicorn") or _configuration_of("hypercorn")
    return configured is not None and configured.workers > 1


def _siblings_at_the_socket() -> bool:
    """Whether another child of this one's parent has a socket open that this one serves.

    Of any server, where the system shows processes as files; elsewhere the answer is no. Whoever
    is replaced by this one has closed the socket by then.
    """
    files = _open_files(os.getpid())
    served = {name for descriptor, name in files.items() if _is_served(descriptor, name)}
    siblings = set(_children(os.getppid())) - {os.getpid()}
    return any(served & {*_open_files(pid).values()} for pid in siblings)


def _is_served(descriptor: int, name: str) -> bool:
    """Whether it is a socket with an address at this end, and none at the other."""
    if not name.startswith("socket:"):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as opened:
        with suppress(OSError):
            opened.getpeername()
            return False
        address = opened.getsockname()
        has_one = address[1] if opened.family in (socket.AF_INET, socket.AF_INET6) else address
        return opened.type == socket.SOCK_STREAM and bool(has_one)


def _open_files(pid: int) -> dict[int, str]:
    """By descriptor, as the system names them; none for a process that is gone or not ours."""
    files: dict[int, str] = {}
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                files[int(link.name)] = str(link.readlink())
    return files


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, task.read_text().split())
    return children
