"""Executors in worker processes: the bits are those of the process that asks, its time is not.

Guarantees:
- A worker that is killed loses what it was doing and nothing else; the next one is a fresh one.
- Workers end with this process, however it ends. This process loads no torch for them, and nothing
  that they compute with passes through it: states are files, of which it knows the descriptors.
- A data set is in memory once, for all of them; the first who needs it loads it. (Of the families'
  instances each worker keeps a few of its own: `engine/varied.py`.)
"""

# pyright: strict

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pydantic import TypeAdapter

from ml_trainer_env.server import counters
from ml_trainer_env.server.data.folder import NAMES
from ml_trainer_env.server.runs import Engine, Precision
from ml_trainer_env.server.runtime.channel import Channel, Message
from ml_trainer_env.server.runtime.orders import Answer, Order, Told
from ml_trainer_env.server.runtime.runner import (
    STARTS,
    ExecutorLost,
    NeverStarted,
    WorkerFailed,
    WorkerLost,
)
from ml_trainer_env.server.runtime.worker import STOP

MODULE = "ml_trainer_env.server.runtime.worker"
_ANSWERS = TypeAdapter(list[Answer])
PATIENCE = 10.0  # seconds that a worker gets to end


class Process(Protocol):
    """A worker's process, as `subprocess.Popen` has it."""

    returncode: int | None
    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


Launch = Callable[[socket.socket, Precision], Process]  # with the worker's end of its socket


def launch(end: socket.socket, precision: Precision) -> subprocess.Popen[bytes]:
    """Start a process that trains."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE, str(end.fileno()), precision],
        stdin=subprocess.DEVNULL,
        pass_fds=[end.fileno()],
        start_new_session=True,  # Ctrl-C is for the server, which lets epochs finish
    )


@dataclass(frozen=True, slots=True)
class LoadedData:
    """A data set in a file, and where its tensors lie in it."""

    file: int  # descriptor
    places: Sequence[Any]  # of `shared_data.Place`


class Pool:
    """At most `size` worker processes, started when they are needed and then kept."""

    def __init__(
        self,
        size: int,
        precision: Precision = "fp32",
        *,
        load: Callable[[str], LoadedData | None] | None = None,
        launch: Launch = launch,
    ) -> None:
        """`load` gives data sets instead of a worker, or none: then workers find them themselves.

        `launch` starts another kind of worker.
        """
        self._size = size
        self._new = partial(_Worker, launch, precision)
        self._load = load or self._loaded_by_a_worker
        self._data: dict[str, LoadedData] = {}
        self._loading = threading.Lock()
        self._engine: Engine | None = None
        self._starting = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def engine(self) -> Engine:
        """Once the first worker has started. Raises `WorkerLost` and `WorkerFailed`."""
        with self._starting:
            for _ in range(STARTS):
                if self._engine is None:
                    try:
                        with self._worker(None) as worker:
                            self._engine = worker.engine()
                    except NeverStarted:
                        counters.WORKERS_LOST.inc()
                        continue
                return self._engine
        raise WorkerLost(f"{STARTS} workers ended before they could begin")

    @contextmanager
    def perform(self, order: Order, state: int | None) -> Generator[_Answers]:
        """Have a worker carry out `order`, by preference one that holds its state."""
        name = order.workload.dataset
        data = self._shared(name) if name.partition("/")[0] in NAMES else None
        with self._worker(order.state) as worker:
            worker.begin(order, state, data)
            yield _Answers(worker)

    def prepare(self, datasets: Iterable[str] = ()) -> None:
        """Start all workers and load these data sets, so that nobody waits for it later."""
        with self._lock:
            self._idle += [self._new() for _ in range(self._missing)]
        for name in datasets:
            self._shared(name)

    def resize(self, size: int) -> None:
        """From now on there are at most so many; those that ended in the meantime are let go."""
        with self._lock:
            self._size = size
            ended = [idle for idle in self._idle if not idle.alive]
            self._idle = [idle for idle in self._idle if idle.alive]
        for each in ended:
            each.close()

    def processes(self) -> list[Process]:
        """The workers, busy and idle."""
        with self._lock:
            return [worker.process for worker in (*self._busy, *self._idle)]

    def close(self) -> None:
        """End the workers; whoever still asks is told so."""
        with self._lock:
            self._closed = True
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.close()
        with self._loading:
            for data in self._data.values():
                os.close(data.file)
            self._data.clear()

    @contextmanager
    def _worker(self, key: str | None) -> Generator[_Worker]:
        """A worker to oneself. One that is left in the middle of an order is ended.

        One that is lost takes the idle ones that died with it along.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._idle.sort(key=lambda idle: idle.holds == key)
            worker = self._idle.pop() if self._idle else self._new()
            self._busy.add(worker)
        try:
            yield worker
        finally:
            with self._lock:
                self._busy.discard(worker)
                ended = [] if worker.ready else [idle for idle in self._idle if not idle.alive]
                self._idle = [idle for idle in self._idle if idle not in ended]
                kept = worker.ready and not self._closed and self._missing > 0
                if kept:
                    self._idle.append(worker)
            for each in ended if kept else (worker, *ended):
                each.close()

    @property
    def _missing(self) -> int:
        """How many workers more there may be."""
        return max(0, self._size - len(self._idle) - len(self._busy))

    def _shared(self, name: str) -> LoadedData | None:
        """Nobody waits for another data set than theirs, once theirs is there."""
        data = self._data.get(name)
        if data is None:
            with self._loading:
                data = self._data.get(name) or self._load(name)
                if data is not None:
                    self._data[name] = data
        return data

    def _loaded_by_a_worker(self, name: str) -> LoadedData:
        """Raises `WorkerFailed` and `WorkerLost`."""
        for _ in range(STARTS):
            try:
                with self._worker(None) as worker:
                    return worker.load(name)
            except ExecutorLost:
                counters.WORKERS_LOST.inc()
                continue
        raise WorkerLost(f"{STARTS} workers were killed while they loaded {name}")


class _Worker:
    """A process of `worker.py`, with this end of its socket."""

    def __init__(self, launch: Launch, precision: Precision) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = launch(theirs, precision)
        self.channel = Channel(ours)
        self.holds: str | None = None  # the key of the state that it has
        self.ready = True  # for the next order
        self._has: set[str] = set()  # data sets
        self._engine: Engine | None = None

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def engine(self) -> Engine:
        """What it says of itself once it has started. Raises `NeverStarted` and `WorkerFailed`."""
        if self._engine is None:
            self.ready = False
            try:
                self._engine = Engine(**_content(self.receive())["engine"])
            except ExecutorLost:
                raise NeverStarted from None
            self.ready = True
        return self._engine

    def load(self, name: str) -> LoadedData:
        """Have it load a data set. Raises `ExecutorLost` and `WorkerFailed`."""
        self.engine()
        self._send(json.dumps({"load": name}).encode(), [])
        message = self.receive()
        places = _content(message)["places"]
        return LoadedData(message.files[0], places)

    def begin(self, order: Order, state: int | None, data: LoadedData | None) -> None:
        """Give it an order; what is not shared, it loads by itself.

        Raises `NeverStarted` where it is gone already, and `WorkerFailed`.
        """
        self.engine()
        name = order.workload.dataset
        files = [] if state is None or self.holds == order.state else [state]
        places = "null"
        if data is not None and name not in self._has:
            places = json.dumps(data.places)
            files.append(data.file)
            self._has.add(name)
        text = f'{{"order": {order.model_dump_json()}, "data": {places}}}'
        try:
            self._send(text.encode(), files)
        except ExecutorLost:
            raise NeverStarted from None
        self.ready = False

    def receive(self) -> Message:
        """Raises `ExecutorLost` when the process ends before it has answered."""
        try:
            return self.channel.receive()
        except EOFError:
            self.ready = False
            raise ExecutorLost from None

    def stop(self) -> None:
        self._send(STOP, [])

    def close(self) -> None:
        """The process ends when its socket does, and is waited for."""
        self.channel.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _send(self, text: bytes, files: Sequence[int]) -> None:
        try:
            self.channel.send(text, files)
        except OSError:
            self.ready = False
            raise ExecutorLost from None


class _Answers:
    """Of a worker that was given an order, one after another."""

    def __init__(self, worker: _Worker) -> None:
        self._worker = worker
        self._received: deque[Told] = deque()

    def __next__(self) -> Told:
        """Raises `ExecutorLost`."""
        if not self._received:
            message = self._worker.receive()
            answers = _ANSWERS.validate_json(message.text)
            file = message.files[0] if message.files else None  # belongs to the last of them
            self._received += [Told(answer, file if answer.last else None) for answer in answers]
            if answers[-1].last:
                self._worker.ready = True
                self._worker.holds = answers[-1].key
        return self._received.popleft()

    def stop(self) -> None:
        """Raises `ExecutorLost`."""
        self._worker.stop()


def _content(message: Message) -> dict[str, Any]:
    """Raises `WorkerFailed`."""
    content = json.loads(message.text)
    if "error" in content:
        raise WorkerFailed(content["error"])
    return content
