"""The server's side of a Ray cluster: it launches the pool's workers there.

All that speaks to Ray is one process (`bridge.py`), which is started again whenever it ends: with
the head, with its node, or by accident. Until it is back there are no cores, and whoever trains
waits; what was in progress is done again.
"""

# pyright: strict

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from ml_trainer_env.server.runs import Precision
from ml_trainer_env.server.runtime.channel import Channel
from ml_trainer_env.server.runtime.ray.nodes import Wanted

MODULE = "ml_trainer_env.server.runtime.ray.bridge"
AGAIN = 2.0  # seconds until a bridge that ended is started again
PATIENCE = 60.0  # seconds that a launch waits for the bridge

log = logging.getLogger("uvicorn.error")  # uvicorn's own: where an operator looks


class Machines:
    """The machines of a cluster that have the wanted engine.

    `changed` is told how many cores there are, at first and whenever it changes, and how many of
    them any node has side by side; `lost`, that all states are gone.
    """

    def __init__(
        self,
        wanted: Wanted,
        *,
        changed: Callable[[int, int], None],
        lost: Callable[[], None],
        bridge: str = MODULE,
    ) -> None:
        self._program = [sys.executable, "-P", "-m", bridge]
        self._wanted = wanted
        self._changed = changed
        self._lost = lost
        self._lock = threading.Condition()
        self._channel: Channel | None = None  # to the bridge
        self._up = False  # the bridge has reached the cluster
        self._bridge: subprocess.Popen[bytes] | None = None
        self._workers: dict[int, RemoteWorker] = {}
        self._count = 0
        self._closed = False
        self.says = "nobody has reached it yet"  # the latest of the cluster, for people
        self._thread = threading.Thread(target=self._keep_up, daemon=True, name="ray")
        self._thread.start()

    def launch(self, end: socket.socket, precision: Precision) -> RemoteWorker:
        """A worker on some machine; while the bridge is away one that has ended already."""
        with self._lock:
            self._lock.wait_for(lambda: self._up or self._closed, PATIENCE)
            self._count += 1
            worker = RemoteWorker(self, self._count)
            if self._send({"start": self._count}, [end.fileno()]):
                self._workers[self._count] = worker
            else:
                worker.end()
        return worker

    def forget(self, keys: Sequence[str]) -> None:
        """States that nobody needs."""
        with self._lock:
            self._send({"forget": list(keys)})

    def kill(self, worker: int) -> None:
        """An actor, in the middle of whatever it does."""
        with self._lock:
            self._send({"kill": worker})

    def close(self) -> None:
        """End the bridge, and with it all actors of ours."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            if self._channel is not None:
                self._channel.hang_up()
        self._thread.join()

    @property
    def bridge(self) -> subprocess.Popen[bytes] | None:
        """The process, while there is one."""
        return self._bridge

    def _send(self, content: dict[str, Any], files: Sequence[int] = ()) -> bool:
        """Whether there was a bridge to send it to. Needs the lock."""
        if self._channel is None or not self._up:
            return False
        try:
            self._channel.send(json.dumps(content).encode(), files)
        except OSError:
            return False
        return True

    def _keep_up(self) -> None:
        """Runs in a thread of its own for as long as the process."""
        while not self._closed:
            try:
                self._with_a_bridge()
            except OSError as error:  # no process, memory or file is left for one
                self._complain(f"what speaks to it cannot be started ({error})")
            with self._lock:
                self._lock.wait_for(lambda: self._closed, AGAIN)

    def _with_a_bridge(self) -> None:
        """From its start to its end. Raises `OSError` where it cannot be started."""
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as failed:
            failed.callback(ours.close)
            self._bridge = subprocess.Popen(
                [*self._program, str(theirs.fileno()), json.dumps(self._wanted)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            failed.pop_all()
        with self._lock:
            self._channel = Channel(ours)
            if self._closed:
                self._channel.hang_up()
        with suppress(EOFError):
            while True:
                self._take(json.loads(self._channel.receive().text))
        with self._lock:
            self._up = False
            self._channel.close()
            workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            worker.end()
        self._lost()
        self._changed(0, 0)
        self._bridge.wait()

    def _take(self, content: dict[str, Any]) -> None:
        """What the bridge tells."""
        if "cores" in content:
            self.says = _cores(content)
            log.info("Ray: %s", self.says)
            # Runs that have begun have this engine's bits, whatever other nodes come.
            self._wanted = self._wanted._replace(engine=content["engine"])
            with self._lock:
                self._up = True
                self._lock.notify_all()
            self._changed(content["cores"], content["narrowest"])
        elif "ended" in content:
            with self._lock:
                worker = self._workers.pop(content["ended"], None)
            if worker is not None:
                worker.end()
        elif "lost" in content:
            log.warning("Ray: an actor was lost on node %s: %s", content["lost"], content["why"])
        elif "closed" in content:
            log.error(
                "Ray: node %s names the engine %s and has %s: it is not used",
                *(content[name] for name in ("closed", "names", "has")),
            )
        else:
            self._complain(content["error"])

    def _complain(self, what: str) -> None:
        """Once, however often it is tried again."""
        if what != self.says:
            self.says = what
            log.error("Ray: %s; trying again", what)


class RemoteWorker:
    """An actor, as the pool knows its workers; elsewhere, so it has no process id here."""

    pid = 0

    def __init__(self, machines: Machines, number: int) -> None:
        self.returncode: int | None = None
        self._machines = machines
        self._number = number
        self._ended = threading.Event()

    def end(self) -> None:
        """It is gone."""
        self.returncode = 0
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises `subprocess.TimeoutExpired`."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("an actor", timeout or 0.0)
        return 0

    def send_signal(self, sig: int) -> None:
        """Whatever the signal, it ends the actor."""
        self.kill()

    def kill(self) -> None:
        self._machines.kill(self._number)


def _cores(content: dict[str, Any]) -> str:
    others, foreign = content["others"], ", ".join(content["foreign"])
    named = f" ({foreign})" if foreign else ""
    alone = f"; {others} nodes name another engine{named} or none, and are left alone"
    of = f" of engine {content['engine']}" if content["engine"] else ""
    return f"{content['cores']} cores{of}{alone if others else ''}"
