"""A worker as an actor: the same computer as in the pool's processes, so the bits are."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import ray

if TYPE_CHECKING:  # torch comes with it, which whoever only names this class does without
    from ml_trainer_env.server.runs import Precision
    from ml_trainer_env.server.runtime.shared_data import SharedData

BESIDE = "beside"  # the group of calls that do not wait for the training
SPACING = 0.25  # seconds between two messages, each of which costs a millisecond beside training


class Loaded(NamedTuple):
    """A data set in a file that a process of this node has open."""

    process: int
    file: int  # descriptor there
    inode: int
    places: Sequence[Any]  # of `shared_data.Place`


class Answers(NamedTuple):
    """Some answers, as the worker's protocol has them; what the order reached may come next."""

    text: bytes
    last: bool
    key: str | None  # with the last: of the state that the actor now holds
    state_follows: bool


class Trainer:
    """Carries out an order at a time. Orders are numbered, so that a stop means one of them."""

    def __init__(self, precision: Precision) -> None:
        from ml_trainer_env.server import trainer
        from ml_trainer_env.server.runtime.jobs import Computer

        trainer.configure_process()
        self._precision: Precision = precision
        self._computer = Computer(in_files=False)
        self._stopped = 0  # the latest order that is to end
        self._shared: dict[str, SharedData] = {}  # kept open for others to map
        self._has: set[str] = set()  # data sets that are mapped here

    def engine(self) -> bytes:
        """What the worker's protocol begins with."""
        from ml_trainer_env.server import trainer

        try:
            return json.dumps({"engine": asdict(trainer.engine(self._precision))}).encode()
        except Exception:
            return json.dumps({"error": traceback.format_exc()}).encode()

    def load(self, name: str) -> Loaded:
        """Load a data set for all processes of this node."""
        from ml_trainer_env.server.engine import resident
        from ml_trainer_env.server.runtime.shared_data import share

        if name not in self._shared:
            self._shared[name] = share(resident.load(name))
        file, places = self._shared[name]
        inode = os.fstat(file.fileno()).st_ino
        return Loaded(os.getpid(), file.fileno(), inode, [tuple(place) for place in places])

    def adopt(self, name: str, data: Loaded) -> bool:
        """Map what another has loaded; False where that one is gone."""
        from ml_trainer_env.server.engine import resident
        from ml_trainer_env.server.runtime.shared_data import Place, attach

        if name in self._has:
            return True
        try:
            file = os.open(f"/proc/{data.process}/fd/{data.file}", os.O_RDONLY)
        except OSError:
            return False
        try:
            if os.fstat(file).st_ino != data.inode:  # another process has come in its place
                return False
            resident.adopt(name, attach(file, [Place(*place) for place in data.places]))
        finally:
            os.close(file)
        self._has.add(name)
        return True

    def perform(self, number: int, text: bytes, state: bytes | None) -> Generator[Answers | bytes]:
        """Carry out the order in `text`, on a state; the one that it reaches comes last.

        Bytes and not files, though the pool has those: writing one into memory and reading it back
        took longer than Ray takes to store it.
        """
        from ml_trainer_env.server.runtime.orders import Order

        order = Order.model_validate_json(text)
        told, waiting = time.monotonic(), list[str]()
        stopped = lambda: self._stopped >= number  # noqa: E731
        for answer, _, content in self._computer.perform(order, state, stopped):
            waiting.append(answer.model_dump_json(exclude_defaults=True))
            if not answer.last and time.monotonic() - told < SPACING:
                continue
            text = f"[{','.join(waiting)}]".encode()
            yield Answers(text, answer.last, answer.key, content is not None)
            if content is not None:
                yield content
            told, waiting = time.monotonic(), []

    @ray.method(concurrency_group=BESIDE)
    def stop(self, number: int) -> None:
        """Let the epoch in progress be the last one of this order."""
        self._stopped = max(self._stopped, number)
