"""How an order is carried out: the part of whoever computes that needs torch.

The same in a worker process and in the process of a notebook, so the bits are.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path

from ml_trainer_env.models import EpochRecord
from ml_trainer_env.server import trainings
from ml_trainer_env.server.engine.team import SERIAL, Team
from ml_trainer_env.server.runtime import state_files
from ml_trainer_env.server.runtime.orders import Answer, Order, Told, outcome_of
from ml_trainer_env.server.runtime.state_files import UnreadableState
from ml_trainer_env.server.trainings import State


class Computer:
    """Carries out one order at a time, and holds on to the state that it made last.

    States come and go as files; not `in_files`, as bytes, for whoever keeps them elsewhere.
    """

    def __init__(self, *, in_files: bool = True) -> None:
        self.held: State | None = None
        self._in_files = in_files
        self._team = cache(Team)

    def perform(
        self, order: Order, given: int | bytes | None, stopped: Callable[[], bool]
    ) -> Generator[Told]:
        """The answers, as they are made; `stopped()` lets the epoch in progress be the last one.

        `given` is the state to begin with: a file's descriptor, or bytes. Raises nothing: what
        fails is the last answer.
        """
        try:
            yield from self._perform(order, given, stopped)
        except UnreadableState:
            yield Told(Answer(last=True, unreadable=True))
        except Exception:
            self.held = None
            yield Told(Answer(last=True, error=traceback.format_exc()))

    def _perform(
        self, order: Order, given: int | bytes | None, stopped: Callable[[], bool]
    ) -> Generator[Told]:
        state = self._state(order, given)
        team = self._team(order.threads) if order.threads > 1 else SERIAL
        outcome, seconds, began = None, 0.0, time.monotonic()
        for number, plan in enumerate(order.plans, 1):
            if outcome is not None:
                yield Told(Answer(outcome=outcome, seconds=seconds))
            started = time.perf_counter()
            state = trainings.advance(state, plan, team)
            seconds = time.perf_counter() - started
            record = state.run.history[-1]
            outcome = outcome_of(record)
            late = number >= order.at_least and time.monotonic() - began >= order.seconds
            if late or stopped() or _ends(record, number, order):
                break
        self.held = state
        accuracy = trainings.hidden_test(state, team) if order.grade else None
        size, descriptor, content = self._kept(state, order)
        answer = Answer(
            outcome=outcome,
            seconds=seconds,
            last=True,
            key=state.key,
            size=size,
            test_accuracy=accuracy,
        )
        yield Told(answer, descriptor, content)

    def _kept(self, state: State, order: Order) -> tuple[int | None, int | None, bytes | None]:
        """Its size, and its file or its bytes."""
        if not order.plans:
            return None, None, None
        if self._in_files:
            return *_written(state, order), None
        content = state_files.pack(state)
        return len(content), None, content

    def _state(self, order: Order, given: int | bytes | None) -> State:
        """Where the order begins. Raises `UnreadableState`."""
        if order.state is None:
            return trainings.start(order.workload, order.seed, order.precision)
        if self.held is not None and self.held.key == order.state:
            return self.held
        assert given is not None, "a state that is not held is given"
        if isinstance(given, bytes):
            return state_files.unpack_of(given, order.state)
        return state_files.read(given, order.state)


def _ends(record: EpochRecord, number: int, order: Order) -> bool:
    """For the first time: an epoch that is trained again goes on as it did."""
    return order.workload.ends_with(record) and number > order.again


def _written(state: State, order: Order) -> tuple[int | None, int | None]:
    """Bytes and descriptor of its file. A full disk costs only the file."""
    try:
        return state_files.write(state, Path(order.folder) if order.folder else None)
    except OSError:
        return None, None
