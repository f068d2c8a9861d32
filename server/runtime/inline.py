"""An executor in the threads of whoever asks: for notebooks and tests, and as a reference."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager

from ml_trainer_env.server import trainer
from ml_trainer_env.server.runs import Engine, Precision
from ml_trainer_env.server.runtime.jobs import Computer
from ml_trainer_env.server.runtime.orders import Order, Told


class Inline:
    """As many computers as orders are carried out at a time. Any thread may call."""

    def __init__(self, precision: Precision = "fp32") -> None:
        self._precision: Precision = precision
        self._idle: list[Computer] = []
        self._lock = threading.Lock()

    def engine(self) -> Engine:
        return trainer.engine(self._precision)

    @contextmanager
    def perform(self, order: Order, state: int | None) -> Generator[_Answers]:
        computer = self._computer(order.state)
        try:
            stop = threading.Event()
            with closing(computer.perform(order, state, stop.is_set)) as told:
                yield _Answers(told, stop.set)
        finally:
            with self._lock:
                self._idle.append(computer)

    def _computer(self, key: str | None) -> Computer:
        """By preference one that holds the state with this key."""
        with self._lock:
            self._idle.sort(key=lambda idle: idle.held is not None and idle.held.key == key)
            return self._idle.pop() if self._idle else Computer()


class _Answers:
    def __init__(self, told: Iterator[Told], stop: Callable[[], None]) -> None:
        self._told = told
        self.stop = stop

    def __next__(self) -> Told:
        return next(self._told)
