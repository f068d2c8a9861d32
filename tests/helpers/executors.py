"""Executors that train nothing and need no torch: an epoch's metrics are a function of its key."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ml_trainer_env.models import EpochPlan, EpochRecord
from ml_trainer_env.server import runs
from ml_trainer_env.server.runs import Engine, Run, Scale, Workload
from ml_trainer_env.server.runtime.nameless import nameless_file
from ml_trainer_env.server.runtime.orders import METRICS, Answer, Order, Outcome, Told, record
from ml_trainer_env.server.runtime.states import SUFFIX

PATIENCE = 60  # seconds; a machine may stand still for a while
ENGINE = Engine("of the tests", "fp32", {})
WORKLOAD = Workload("mlp", "mnist", 1, 1, Scale(0, 1))
STATE = 100  # bytes of a state's file
WILD = 10.0  # a learning rate that diverges


def plan(learning_rate: float = 0.001) -> EpochPlan:
    return EpochPlan(
        optimizer="adam",
        learning_rate=learning_rate,
        batch_size=64,
        weight_decay=0,
        dropout=0.2,
        augmentation=0.5,
    )


PLAN = plan()


def begin(seed: int = 0) -> Run:
    return runs.begin(WORKLOAD, seed, ENGINE)


def outcome(key: str, plan: EpochPlan) -> Outcome:
    """Floats with all their bits, which depend on all of the key."""
    if plan.learning_rate >= WILD:
        return Outcome((None,) * len(METRICS))
    digest = hashlib.sha256(key.encode()).digest()
    return Outcome(
        tuple(int.from_bytes(digest[n : n + 4]) / 2**32 / 3 for n in range(len(METRICS)))
    )


def grade(key: str) -> float:
    """The hidden-test accuracy of a run."""
    return int(key[:4], 16) / 2**16


def after(run: Run, plans: Sequence[EpochPlan]) -> Run:
    """`run` with these epochs trained."""
    for each in plans:
        run = run.after(record(run.epoch + 1, each, outcome(run.then(each), each)))
    return run


def told(run: Run, plans: Sequence[EpochPlan]) -> list[EpochRecord]:
    """The records of these epochs."""
    return list(after(run, plans).history[run.epoch :])


class Clock:
    """Stands for `time` where a turn reads it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class FakeExecutor:
    """Does what `jobs.Computer` does, with keys for states.

    `hold(seed)` makes every epoch and grade of that seed's runs wait to be let go. `trouble` is
    called as an epoch begins, with its order and its number in the run: what it raises happens.
    """

    def __init__(self, clock: Clock | None = None, seconds: float = 0.0) -> None:
        self.orders: list[Order] = []
        self.begun: list[tuple[int, int]] = []  # seed and epoch; 0: a grade
        self.threads: list[int] = []  # lent to each of those
        self.busy = self.most = 0  # threads
        self.broken: set[str] = set()  # keys of epochs that give other bits
        self.trouble: Callable[[Order, int], None] = lambda order, epoch: None
        self.held: dict[int, threading.Semaphore] = {}
        self._clock = clock or Clock()
        self._seconds = seconds  # that an epoch takes on that clock
        self._lock = threading.Lock()

    def engine(self) -> Engine:
        return ENGINE

    def hold(self, *seeds: int) -> None:
        for seed in seeds:
            self.held[seed] = threading.Semaphore(0)

    def let_go(self, seed: int, epochs: int = 1) -> None:
        self.held[seed].release(epochs)

    @contextmanager
    def perform(self, order: Order, state: int | None) -> Iterator[_Answers]:
        self.orders.append(order)
        yield _Answers(self._told(order, state, stop := threading.Event()), stop.set)

    def _told(self, order: Order, state: int | None, stop: threading.Event) -> Iterator[Told]:
        run = begin(order.seed) if order.state is None else _read(state, order.state)
        if run is None:
            yield Told(Answer(last=True, unreadable=True))
            return
        began, reached = self._clock.now, None
        for number, each in enumerate(order.plans, 1):
            if reached is not None:
                yield Told(Answer(outcome=reached, seconds=self._seconds))
            error = self._begin(order, epoch := run.epoch + 1)
            if error is not None:
                yield Told(Answer(last=True, error=error))
                return
            key = run.then(each)
            assert isinstance(each, EpochPlan)
            reached = outcome(key + "!" if key in self.broken else key, each)
            run = run.after(record(epoch, each, reached))
            late = number >= order.at_least and self._clock.now - began >= order.seconds
            diverged = reached.metrics[0] is None and number > order.again
            if late or stop.is_set() or diverged:
                break
        if order.grade:
            self._begin(order, 0)
        yield self._last(order, run, reached)

    def _begin(self, order: Order, epoch: int) -> str | None:
        """Spend the time of an epoch. An error is an answer; whoever is lost gives none."""
        with self._lock:
            self.begun.append((order.seed, epoch))
            self.threads.append(order.threads)
            self.busy += order.threads
            self.most = max(self.most, self.busy)
        try:
            self.trouble(order, epoch)
            if order.seed in self.held:
                assert self.held[order.seed].acquire(timeout=PATIENCE), "it was never let go"
            self._clock.now += self._seconds
        except ArithmeticError as error:
            return f"{type(error).__name__}: {error}"
        finally:
            with self._lock:
                self.busy -= order.threads
        return None

    def _last(self, order: Order, run: Run, reached: Outcome | None) -> Told:
        file = size = None
        if order.plans:
            size = STATE
            content = _content(run)
            if order.folder:
                (Path(order.folder) / f"{run.key}{SUFFIX}").write_bytes(content)
            else:
                with nameless_file() as aside:
                    aside.write(content)
                    aside.flush()
                    file = os.dup(aside.fileno())
        answer = Answer(
            outcome=reached,
            seconds=self._seconds,
            last=True,
            key=run.key,
            size=size,
            test_accuracy=grade(run.key) if order.grade else None,
        )
        return Told(answer, file)


class _Answers:
    def __init__(self, told: Iterator[Told], stop: Callable[[], None]) -> None:
        self._told = told
        self.stop = stop

    def __next__(self) -> Told:
        return next(self._told)


_histories: dict[str, Run] = {}  # by key: what the file of a real state would hold


def _content(run: Run) -> bytes:
    _histories[run.key] = run
    return run.key.encode().ljust(STATE)


def _read(state: int | None, key: str) -> Run | None:
    """None for a file that does not hold the state."""
    assert state is not None, "a state comes with its file"
    with suppress(OSError):
        if os.pread(state, STATE + 1, 0) == key.encode().ljust(STATE):
            return _histories[key]
    return None
