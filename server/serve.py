"""The command that serves: it reads its settings and takes its port before all that takes long.

`ml-trainer serve`, `python -m ml_trainer_env.server.app` and the script `server` come here. What
cannot be used, and a port that cannot be had, is told at once and in one line: status 2 and 1.
Whoever connects while the rest is imported and loaded waits for it.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from ml_trainer_env.server import settings
from ml_trainer_env.server.data import folder as data_folder
from ml_trainer_env.server.machine.ending import at_once
from ml_trainer_env.variables import SettingsError, settings_explained

APPLICATION = "ml_trainer_env.server.app:app"
GRACE = 10  # seconds that uvicorn leaves requests in progress when it is told to stop
BACKLOG = 2048  # connections that wait to be accepted, uvicorn's default
MAX_PORT = 65535
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # a container's localhost without IPv6

log = logging.getLogger("uvicorn.error")  # uvicorn's own: where an operator looks


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="server", description="Serve the environment.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (%(default)s)")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback, in the end either
    with settings_explained():
        if not 0 <= options.port <= MAX_PORT:
            raise SettingsError(f"--port: must be from 0 to {MAX_PORT}; got {options.port}")
        settings.current()
        data_folder.require_usable()
    try:
        sockets = listen(options.host, options.port)
    except OSError as error:
        why = error.strerror or error
        parser.exit(1, f"cannot listen on {options.host}, port {options.port}: {why}\n")
    _serve(sockets)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on which clients can connect, one for each address that `host` has on this machine.

    All on the same port; 0: a free one. Raises `OSError`.
    """
    places = socket.getaddrinfo(host or None, port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    unusable = OSError("it has no address")
    with ExitStack() as opened:
        listening: list[socket.socket] = []
        for family, _, _, _, (address, _, *rest) in dict.fromkeys(places):
            chosen = listening[0].getsockname()[1] if listening else port
            try:
                listener = _listener(family, (address, chosen, *rest))
            except OSError as error:
                if error.errno not in NOT_HERE:
                    raise
                unusable = error
            else:
                listening.append(opened.enter_context(listener))
        if not listening:
            raise unusable
        opened.pop_all()
        return listening


def _listener(family: socket.AddressFamily, address: tuple[object, ...]) -> socket.socket:
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # IPv4 has a socket of its own
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        opened.pop_all()
        return listener


def _serve(sockets: list[socket.socket]) -> None:
    with at_once():
        import uvicorn

        from ml_trainer_env.server.doors.messages import MAX_BYTES
        from ml_trainer_env.server.machine.quiet import QuietServer

    config = uvicorn.Config(
        APPLICATION,
        workers=1,
        timeout_graceful_shutdown=GRACE,
        ws_max_size=4 * MAX_BYTES,  # what is longer than MAX_BYTES is refused with an explanation
    )
    for listener in sockets:
        host, port, *rest = listener.getsockname()
        log.info("listening on http://%s:%d", f"[{host}]" if rest else host, port)
    if os.environ.get("WEB_CONCURRENCY", "1") != "1":
        log.info("WEB_CONCURRENCY does not count: a server is one process, with its own workers")
    server = QuietServer(config)
    with suppress(KeyboardInterrupt):
        server.run(sockets)
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    main()
