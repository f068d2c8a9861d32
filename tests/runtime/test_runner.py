"""Lending cores: never more than there are, in the order of asking, and without a trace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from live import eventually
from states import begin, small

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import trainer
from ml_trainer_env.server.engine.team import Team
from ml_trainer_env.server.runtime.runner import InlineRunner
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.trainer import TrainingState

PATIENCE = 60  # seconds; a machine may stand still for a while
PLAN = EpochPlan(
    optimizer="adam",
    learning_rate=0.001,
    batch_size=64,
    weight_decay=0,
    dropout=0.2,
    augmentation=0.5,
)


class Engine:
    """Stands for `trainer.advance`: each epoch holds its cores until it is let go."""

    def __init__(self) -> None:
        self.begun: list[Any] = []  # states, in the order of their start
        self.threads: list[int] = []  # lent to each
        self.busy = self.most = 0
        self._lock = threading.Lock()
        self._gates: dict[Any, threading.Event] = {}

    def gate(self, state: Any) -> threading.Event:
        with self._lock:
            return self._gates.setdefault(state, threading.Event())

    def __call__(self, state: Any, plan: EpochPlan, team: Team) -> Any:
        with self._lock:
            self.begun.append(state)
            self.threads.append(team.threads)
            self.busy += team.threads
            self.most = max(self.most, self.busy)
        try:
            assert self.gate(state).wait(PATIENCE), "the test never let it go"
        finally:
            with self._lock:
                self.busy -= team.threads
        if state == "bad":
            raise ArithmeticError(state)
        return f"{state} trained"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(trainer, "advance", engine)
    return engine


class Crowd:
    """Asks for epochs one after another, each from a thread of its own."""

    def __init__(self, runner: InlineRunner, engine: Engine, pool: ThreadPoolExecutor) -> None:
        self.runner, self.engine, self._pool = runner, engine, pool
        self.asked: dict[Any, Future[Any]] = {}

    def ask(self, state: Any) -> None:
        """Returns once the epoch has begun or waits in the queue."""
        waiting = len(self.runner._cores._queue)
        begun = len(self.engine.begun)
        self.submit(self.runner.advance, state, PLAN)
        self.settle(
            lambda: len(self.engine.begun) > begun or len(self.runner._cores._queue) > waiting
        )

    def submit(self, call: Callable[..., Any], state: Any, *rest: Any) -> None:
        self.asked[state] = self._pool.submit(call, state, *rest)

    def settle(self, condition: Callable[[], bool]) -> None:
        eventually(condition, timeout=PATIENCE)

    def finish(self, state: Any) -> Any:
        self.engine.gate(state).set()
        return self.asked[state].result(PATIENCE)


@contextmanager
def crowd(engine: Engine, threads: int, cores: int) -> Iterator[Crowd]:
    with ThreadPoolExecutor(40) as pool:
        each = Crowd(InlineRunner(threads, cores), engine, pool)
        try:
            yield each
        finally:
            for state in each.asked:
                engine.gate(state).set()


def test_an_epoch_alone_is_lent_all_its_threads(engine: Engine) -> None:
    with crowd(engine, threads=2, cores=2) as each:
        for state in ("first", "second"):
            each.ask(state)
            assert each.finish(state) == f"{state} trained"
    assert engine.threads == [2, 2]


@pytest.mark.parametrize(("threads", "cores", "lent"), [(1, 4, 1), (4, 2, 2), (2, 1, 1), (3, 8, 3)])
def test_no_more_than_asked_for_and_no_more_than_there_are(
    engine: Engine, threads: int, cores: int, lent: int
) -> None:
    with crowd(engine, threads, cores) as each:
        each.ask("only")
        each.finish("only")
    assert engine.threads == [lent]


def test_with_others_waiting_each_is_lent_one(engine: Engine) -> None:
    with crowd(engine, threads=2, cores=2) as each:
        for state in range(6):
            each.ask(state)
        assert engine.threads == [2]  # came when nobody else was there
        for state in range(6):
            each.finish(state)
            each.settle(lambda done=state: len(engine.begun) >= min(6, done + 3))
    assert engine.threads[:5] == [2, 1, 1, 1, 1]
    assert engine.most == 2


def test_epochs_begin_in_the_order_of_asking(engine: Engine) -> None:
    states = list(range(8))
    with crowd(engine, threads=1, cores=1) as each:
        for state in states:
            each.ask(state)
        for state in states:
            each.settle(lambda begun=state: len(engine.begun) == begun + 1)
            assert each.finish(state) == f"{state} trained"
    assert engine.begun == states


@pytest.mark.parametrize(("threads", "cores"), [(1, 1), (2, 2), (2, 3), (4, 4), (2, 5)])
def test_never_more_busy_threads_than_cores(engine: Engine, threads: int, cores: int) -> None:
    states = list(range(30))
    with crowd(engine, threads, cores) as each:
        for state in states:
            each.submit(each.runner.advance, state, PLAN)
        for state in states:  # asked for at once, so they begin in any order
            engine.gate(state).set()
        for future in each.asked.values():
            future.result(PATIENCE)
    assert sorted(engine.begun) == states
    assert engine.most <= cores
    assert engine.busy == 0


def test_an_epoch_that_fails_gives_its_cores_back(engine: Engine) -> None:
    with crowd(engine, threads=2, cores=2) as each:
        each.ask("bad")
        each.ask("waiting")
        with pytest.raises(ArithmeticError):
            each.finish("bad")
        assert each.finish("waiting") == "waiting trained"
        each.ask("alone")
        each.finish("alone")
    assert engine.threads == [2, 2, 2]


def test_grading_takes_its_place_in_the_queue(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "test_accuracy", lambda state, team: engine(state, PLAN, team))
    with crowd(engine, threads=1, cores=1) as each:
        each.ask("training")
        each.submit(each.runner.test_accuracy, "grading")
        each.settle(lambda: len(each.runner._cores._queue) == 1)
        each.ask("later")
        assert engine.begun == ["training"]
        for state in ("training", "grading", "later"):
            each.finish(state)
    assert engine.begun == ["training", "grading", "later"]


@pytest.mark.parametrize("threads", [0, -1])
def test_nobody_trains_on_no_thread(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        InlineRunner(threads)
    with pytest.raises(ValueError, match="cores"):
        InlineRunner(cores=threads)


# --- On the real engine -------------------------------------------------------------------------


def value(state: TrainingState) -> tuple[Any, ...]:
    tensors = (state.current.weights, state.current.statistics, *state.moments)
    return state.key, state.history, *(tensor.numpy().tobytes() for tensor in tensors)


@pytest.mark.parametrize("task_id", TASKS)
def test_whoever_runs_it_the_bits_are_the_engines(
    monkeypatch: pytest.MonkeyPatch, task_id: str
) -> None:
    monkeypatch.setattr(trainer, "resident", small)
    starts = [begin(task_id, seed) for seed in range(4)]
    expected = [trainer.advance(start, PLAN) for start in starts]
    runner = InlineRunner(threads=2, cores=2)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda start: runner.advance(start, PLAN), starts))
    alone = [runner.advance(start, PLAN) for start in starts]
    assert [*map(value, together)] == [*map(value, alone)] == [*map(value, expected)]
    graded = runner.test_accuracy(alone[0])
    assert graded == trainer.test_accuracy(expected[0])


def test_a_failing_part_waits_for_the_others() -> None:
    finished = threading.Event()

    def part(number: int) -> None:
        if number == 0:
            raise ZeroDivisionError
        time.sleep(0.2)  # still computing when the other part fails
        finished.set()

    team = Team(2)
    with pytest.raises(ZeroDivisionError):
        team.map(part, [0, 1])
    assert finished.is_set()
    team.close()
