"""Shared epochs: trained once for all who ask, with the bits of a real run, without a trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from executors import PATIENCE, PLAN, WILD, FakeExecutor, after, begin, grade, plan, told
from live import eventually
from real import Outcome, Player, engine
from states import value

from ml_trainer_env.agents.moves import SUBMIT, configure, rate
from ml_trainer_env.agents.moves import run as train
from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.runtime.asking import Asker, QueueFull
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.orders import METRICS, metrics_of
from ml_trainer_env.server.runtime.records import Records
from ml_trainer_env.server.runtime.runner import (
    SharedEpochMismatch,
    SliceRunner,
    Trained,
    WorkerFailed,
)
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.session import process
from ml_trainer_env.server.settings import Settings

PLANS = [plan(0.001 * n) for n in range(1, 5)]


@pytest.fixture
def records() -> Iterator[Records]:
    records = Records()
    yield records
    records.close()


@pytest.fixture
def executor() -> Iterator[FakeExecutor]:
    executor = FakeExecutor()
    yield executor
    for seed in executor.held:  # let go of whatever a failed test left behind
        executor.let_go(seed, 1000)


def slices(executor: FakeExecutor, cores: int = 8, max_waiting: int = 256) -> SliceRunner:
    return SliceRunner(executor, Cores(1, cores, max_waiting), States(10**9))


def asked(
    runner: SharingRunner, plans: Sequence[EpochPlan], run: Run | None = None
) -> list[Trained]:
    return list(runner.train(run or begin(), plans))


def shared(epochs: list[Trained]) -> list[bool]:
    return [epoch.shared for epoch in epochs]


class Crowd:
    """Sessions that ask, each from a thread of its own."""

    def __init__(self, runner: SharingRunner, pool: ThreadPoolExecutor) -> None:
        self.runner, self.pool = runner, pool
        self.waiting = threading.Semaphore(0)

    def ask(
        self, plans: Sequence[EpochPlan] = (PLAN,), asker: Asker | None = None
    ) -> Future[list[Trained]]:
        return self.pool.submit(list, self.runner.train(begin(), plans, asker))

    def ask_and_wait(
        self, count: int, plans: Sequence[EpochPlan] = (PLAN,)
    ) -> list[Future[list[Trained]]]:
        """`count` sessions that wait for an epoch that another one trains."""
        asked = [self.ask(plans, Asker(_Waits(self.waiting))) for _ in range(count)]
        for _ in range(count):
            assert self.waiting.acquire(timeout=PATIENCE)
        return asked


class _Waits:
    """A `gone` that is never true. Asked for the second time, its asker waits."""

    def __init__(self, waiting: threading.Semaphore) -> None:
        self._waiting, self._times = waiting, 0

    def __call__(self) -> bool:
        self._times += 1
        if self._times == 2:
            self._waiting.release()
        return False


@pytest.fixture
def crowd(executor: FakeExecutor, records: Records) -> Iterator[Crowd]:
    """Whose executor holds every epoch."""
    executor.hold(0)
    with ThreadPoolExecutor(16) as pool:
        yield Crowd(SharingRunner(slices(executor), records), pool)
        executor.let_go(0, 1000)


# One after another ----------------------------------------------------------------------------


def test_what_was_trained_is_known(executor: FakeExecutor, records: Records) -> None:
    runner = SharingRunner(slices(executor), records)
    first, second = asked(runner, PLANS), asked(runner, PLANS)
    assert [t.record for t in first] == [t.record for t in second] == told(begin(), PLANS)
    assert (shared(first), shared(second)) == ([False] * 4, [True] * 4)
    assert [t.seconds for t in first] == [t.seconds for t in second]
    assert len(executor.begun) == 4


def test_another_plan_seed_or_past_is_trained(executor: FakeExecutor, records: Records) -> None:
    runner = SharingRunner(slices(executor), records)
    asked(runner, [PLAN])
    others = [(begin(), plan(0.002)), (begin(1), PLAN), (after(begin(), [PLAN]), PLAN)]
    for run, its_plan in others:
        epochs = asked(runner, [its_plan], run)
        assert [t.record for t in epochs] == told(run, [its_plan])
        assert shared(epochs) == [False]
    assert len(executor.begun) == 4


def test_known_epochs_need_no_tensors_until_somebody_trains_beyond_them(
    executor: FakeExecutor, records: Records
) -> None:
    """The records outlive the states: another process, or a budget that was spent."""
    asked(SharingRunner(slices(executor), records), PLANS[:3])
    orders = len(executor.orders)
    runner = SharingRunner(slices(executor), records)  # with no states
    assert shared(asked(runner, PLANS[:3])) == [True] * 3
    assert len(executor.orders) == orders
    epochs = asked(runner, PLANS)
    assert [t.record for t in epochs] == told(begin(), PLANS)
    assert shared(epochs) == [True, True, True, False]
    assert [order.again for order in executor.orders[orders:]] == [3]


def test_between_epochs_of_its_own_it_takes_what_others_trained(
    executor: FakeExecutor, records: Records
) -> None:
    for run in (after(begin(), PLANS[:1]), after(begin(), PLANS[:3])):
        record = run.history[-1]
        records.put(run.key, metrics_of(record), 1.5)
    epochs = asked(SharingRunner(slices(executor), records), PLANS)
    assert [t.record for t in epochs] == told(begin(), PLANS)
    assert shared(epochs) == [True, False, True, False]


def test_a_divergence_is_known_and_ends_the_request(
    executor: FakeExecutor, records: Records
) -> None:
    runner = SharingRunner(slices(executor), records)
    plans = [PLAN, plan(WILD), PLAN]
    for expected in ([False] * 2, [True] * 2):
        epochs = asked(runner, plans)
        assert [t.record for t in epochs] == told(begin(), plans[:2])
        assert shared(epochs) == expected
    run = after(begin(), plans[:2])
    assert [t.record for t in asked(runner, [PLAN], run)] == told(run, [PLAN])


def test_without_a_memory_it_is_trained_again_to_the_same_bits(executor: FakeExecutor) -> None:
    forgetful = Records()
    forgetful.close()
    runner = SharingRunner(slices(executor), forgetful)
    for _ in range(2):
        assert [t.record for t in asked(runner, PLANS)] == told(begin(), PLANS)
    assert len(executor.begun) == 8


def test_a_failure_is_not_remembered(executor: FakeExecutor, records: Records) -> None:
    runner = SharingRunner(slices(executor), records)
    _fails_once(executor, ArithmeticError("once"))
    with pytest.raises(WorkerFailed, match="once"):
        asked(runner, PLANS)
    assert [t.record for t in asked(runner, PLANS)] == told(begin(), PLANS)


def test_a_full_queue_is_told_and_claims_nothing(executor: FakeExecutor, records: Records) -> None:
    inner = slices(executor, cores=1, max_waiting=0)
    runner = SharingRunner(inner, records)
    with inner.cores.lend(), pytest.raises(QueueFull):
        asked(runner, PLANS)
    assert len(asked(runner, PLANS)) == 4


def test_equal_runs_are_graded_once(executor: FakeExecutor, records: Records) -> None:
    runner = SharingRunner(slices(executor), records)
    one, other = after(begin(), PLANS[:1]), after(begin(), PLANS[:2])
    asked(runner, PLANS[:2])
    _fails_once(executor, ArithmeticError("once"))
    with pytest.raises(WorkerFailed):
        runner.test_accuracy(one)
    executor.begun.clear()
    grades = [runner.test_accuracy(run) for run in (one, one, other, other)]
    assert grades == [grade(one.key)] * 2 + [grade(other.key)] * 2
    assert [epoch for _, epoch in executor.begun if epoch == 0] == [0, 0]


def test_what_another_process_trained_and_graded_is_known(
    executor: FakeExecutor, tmp_path: Path
) -> None:
    run = after(begin(), PLANS)
    for expected in ([False] * 4, [True] * 4):
        with closing(Records(tmp_path / "records.sqlite")) as records:
            runner = SharingRunner(slices(executor), records)
            epochs = asked(runner, PLANS)
            assert [t.record for t in epochs] == list(run.history)
            assert shared(epochs) == expected
            assert runner.test_accuracy(run) == grade(run.key)
    assert len(executor.begun) == 5


def _fails_once(executor: FakeExecutor, error: Exception) -> None:
    def fail(*_: object) -> None:
        executor.trouble = lambda order, epoch: None
        raise error

    executor.trouble = fail
