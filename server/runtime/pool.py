"""A runner whose epochs run in worker processes. The bits are those of `InlineRunner`.

Guarantees:
- Epochs begin in the order of asking, on never more busy threads than cores: two for one that is
  alone, one each with others waiting.
- A worker that is killed costs its epoch: the job begins again in a fresh worker, from the same
  state, and the result has the same bits.
- Workers end with this process, however it ends. The interpreter lock of this process is free while
  they train.
- A data set is in memory once, for all of them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server.engine import resident
from ml_trainer_env.server.engine.resident import Resident
from ml_trainer_env.server.runtime import state_bytes
from ml_trainer_env.server.runtime.asking import Asker
from ml_trainer_env.server.runtime.channel import Channel, Message
from ml_trainer_env.server.runtime.cores import MAX_WAITING, Cores
from ml_trainer_env.server.runtime.shared_data import SharedData, nameless_file, share
from ml_trainer_env.server.trainer import TrainingState

ATTEMPTS = 3  # at one epoch: one that kills every worker, say for memory, must not do so for ever
STARTS = 10  # of a worker that ends before it can take an epoch, which is not the epoch's fault
PATIENCE = 10.0  # seconds that a worker gets to end


class WorkerLost(RuntimeError):
    """Every worker that tried this epoch was killed."""


class NeverStarted(EOFError):
    """The process ended before it could take anything."""


class WorkerFailed(RuntimeError):
    """The engine raised an exception in a worker; the message is its traceback."""


class PoolRunner:
    """At most `cores` worker processes, started when they are needed and then kept."""

    def __init__(
        self,
        threads: int = 2,
        cores: int | None = None,
        load: Callable[[str], Resident] = resident.load,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._cores = Cores(threads, cores, max_waiting)
        self._load = load
        self._data: dict[str, SharedData] = {}
        self._loading = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def advance(
        self, state: TrainingState, plan: EpochPlan, asker: Asker | None = None
    ) -> TrainingState:
        answer = self._run(state, plan.model_dump(mode="json"), asker)
        return _with_known_parts(state_bytes.unpack(answer.body), state)

    def test_accuracy(self, state: TrainingState) -> float:
        return self._run(state, None, None).head["test_accuracy"]

    def recall(self, key: str) -> TrainingState | None:
        return None

    def prepare(self, datasets: Iterable[str] = ()) -> None:
        """Start all workers and load these data sets, so that nobody waits for it later."""
        with self._lock:
            self._idle += [_Worker() for _ in range(self._missing)]
        for name in datasets:
            self._shared(name)

    def processes(self) -> list[subprocess.Popen[bytes]]:
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
                data.file.close()
            self._data.clear()

    def _run(
        self, state: TrainingState, plan: dict[str, Any] | None, asker: Asker | None
    ) -> Message:
        """The answer of a worker; a plan of None grades."""
        dataset = state.workload.dataset
        data = self._shared(dataset)
        # Before a core is lent, unless a worker seems to have the state.
        body = b"" if self._is_held(state) else state_bytes.pack(state)
        with self._cores.lend(asker) as threads:
            head = {"plan": plan, "threads": threads, "dataset": dataset}
            answer = self._answer(head, state, body, data)
        if "error" in answer.head:
            raise WorkerFailed(answer.head["error"])
        return answer

    def _answer(
        self, head: dict[str, Any], state: TrainingState, body: bytes, data: SharedData
    ) -> Message:
        """Of the first worker that lives to give one. Raises `WorkerLost`."""
        killed = unstarted = 0
        while killed < ATTEMPTS and unstarted < STARTS:
            try:
                with self._worker(state) as worker:
                    return worker.answer(head, state, body, data)
            except NeverStarted:
                unstarted += 1
            except EOFError:
                killed += 1
        raise WorkerLost(
            f"{killed} workers were killed at one epoch, {unstarted} before they began"
        )

    @contextmanager
    def _worker(self, state: TrainingState) -> Iterator[_Worker]:
        """A worker to oneself, by preference one that holds `state`.

        One that is lost takes the idle ones that died with it along.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._idle.sort(key=lambda idle: idle.holds == state.key)
            worker = self._idle.pop() if self._idle else _Worker()
            self._busy.add(worker)
        try:
            yield worker
        except BaseException:
            worker.close()
            with self._lock:
                self._busy.discard(worker)
                dead = [idle for idle in self._idle if not idle.alive]
                self._idle = [idle for idle in self._idle if idle not in dead]
            for idle in dead:
                idle.close()
            raise
        with self._lock:
            self._busy.discard(worker)
            if not self._closed and self._missing > 0:
                self._idle.append(worker)
                return
        worker.close()

    def _is_held(self, state: TrainingState) -> bool:
        with self._lock:
            return any(worker.holds == state.key for worker in self._idle)

    @property
    def _missing(self) -> int:
        """How many workers more there may be."""
        return self._cores.total - len(self._idle) - len(self._busy)

    def _shared(self, name: str) -> SharedData:
        """Nobody waits for another data set than theirs, once theirs is there."""
        data = self._data.get(name)
        if data is None:
            with self._loading:
                data = self._data.get(name) or share(self._load(name))
                self._data[name] = data
        return data


class _Worker:
    """A process of `worker.py`, with this end of its socket."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs, nameless_file() as memory:
            descriptors = [theirs.fileno(), memory.fileno()]
            module = "ml_trainer_env.server.runtime.worker"
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C is for the server, which lets epochs finish
            )
            self._channel = Channel(ours, os.dup(memory.fileno()))
        self.holds: str | None = None  # the key of the state that it has
        self._has: set[str] = set()  # data sets
        self._started = False

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_started(self) -> None:
        """Raises `NeverStarted`."""
        if self._started:
            return
        try:
            self._channel.receive()
        except EOFError:
            raise NeverStarted from None
        self._started = True

    def answer(
        self, head: dict[str, Any], state: TrainingState, body: bytes, data: SharedData
    ) -> Message:
        """`body`: the state as bytes, or nothing, to be made when it is needed.

        Raises `EOFError` when the process ends before it has answered.
        """
        self.wait_until_started()
        name = head["dataset"]
        if self.holds == state.key:
            body = b""
        elif not body:
            body = state_bytes.pack(state)
        try:
            if name in self._has:
                self._channel.send(head, body)
            else:
                head = {**head, "places": data.places}
                self._channel.send(head, body, data.file.fileno())
                self._has.add(name)
        except OSError as error:
            raise EOFError from error
        answer = self._channel.receive()
        self.holds = answer.head["holds"]
        return answer

    def close(self) -> None:
        """The process ends when its socket does, and is waited for."""
        self._channel.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _with_known_parts(after: TrainingState, before: TrainingState) -> TrainingState:
    """`after` with the very checkpoint of `before` where it is the same: kept in memory once."""
    if after.best != before.best:
        return after
    best = before.best_checkpoint
    current = best if after.current is after.best_checkpoint else after.current
    return replace(after, current=current, best_checkpoint=best)
