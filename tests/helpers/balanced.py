"""Servers as processes behind the project's balancer, `deploy/haproxy.cfg` as it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import httpx
from checkout import ROOT
from live import eventually, free_port, listens
from scraped import scraped

BALANCER = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CONFIGURATION = ROOT / "deploy" / "haproxy.cfg"
PATIENCE = 120.0  # seconds


class Server:
    """One, on a port of its own that it has again when it is started again."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = {**os.environ, **settings}
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        command = ["-m", "ml_trainer_env.server.app", "--host", "127.0.0.1"]
        self._process = subprocess.Popen(
            [sys.executable, *command, "--port", str(self._port)],
            env=self._settings,
            stdout=subprocess.DEVNULL,
        )

    def answers(self) -> bool:
        try:
            return httpx.get(self.url + "/health").is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """By SIGKILL."""
        self._process.kill()
        self._process.wait()

    def counts(self, name: str) -> float:
        """A metric of it, 0 where there is none yet."""
        return scraped(self.url).get(f"ml_trainer_{name}", 0.0)


class Balanced:
    """Two servers, and the address at which they are one."""

    def __init__(self, url: str, servers: tuple[Server, Server]) -> None:
        self.url = url
        self.servers = servers

    def sessions(self) -> list[float]:
        """Of each server."""
        return [server.counts("sessions") for server in self.servers]

    def idle(self) -> bool:
        """The sessions of clients that have left are gone, too."""
        return self.sessions() == [0, 0]


@contextmanager
def balanced(settings: Mapping[str, str]) -> Iterator[Balanced]:
    """Two servers with these settings behind the balancer, all of them listening."""
    assert BALANCER
    with ExitStack() as stack:
        servers = Server(settings), Server(settings)
        for server in servers:
            stack.callback(server.kill)
        for server in servers:
            eventually(server.answers, PATIENCE)
        places = (free_port(), *(server.url.removeprefix("http://") for server in servers))
        listen, one, two = f"127.0.0.1:{places[0]}", *places[1:]
        balancer = subprocess.Popen(
            [BALANCER, "-f", CONFIGURATION],
            env={**os.environ, "LISTEN": listen, "SERVER_1": one, "SERVER_2": two},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(balancer.wait)
        stack.callback(balancer.kill)
        url = f"http://{listen}"
        eventually(lambda: listens(url), PATIENCE)
        yield Balanced(url, servers)
