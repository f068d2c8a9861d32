"""Sessions that want the same epochs at the same time: one trains, whoever leaves or fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pytest
from executors import PATIENCE, PLAN, FakeExecutor, after, begin, grade, plan, told
from live import eventually

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server.runtime.asking import Asker
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.records import Records
from ml_trainer_env.server.runtime.runner import SliceRunner, Trained, WorkerFailed
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.runtime.states import States

PLANS = [plan(0.001 * n) for n in range(1, 5)]


class Crowd:
    """Sessions that ask, each from a thread of its own, on an executor that holds every epoch."""

    def __init__(self, records: Records, pool: ThreadPoolExecutor) -> None:
        self.executor = FakeExecutor()
        self.executor.hold(0)
        self.runner = SharingRunner(SliceRunner(self.executor, Cores(1, 8), States(10**9)), records)
        self._pool = pool

    def ask(
        self, plans: Sequence[EpochPlan] = (PLAN,), asker: Asker | None = None
    ) -> Future[list[Trained]]:
        return self._pool.submit(lambda: list(self.runner.train(begin(), plans, asker)))

    def lead(
        self, plans: Sequence[EpochPlan] = (PLAN,), asker: Asker | None = None
    ) -> Future[list[Trained]]:
        """One whose first epoch has begun."""
        leader = self.ask(plans, asker)
        eventually(lambda: self.executor.begun, PATIENCE)
        return leader

    def follow(
        self, count: int, plans: Sequence[EpochPlan] = (PLAN,)
    ) -> list[Future[list[Trained]]]:
        """So many who wait for an epoch that another one trains."""
        waiting = threading.Semaphore(0)
        asked = [self.ask(plans, Asker(_Waits(waiting))) for _ in range(count)]
        for _ in range(count):
            assert waiting.acquire(timeout=PATIENCE)
        return asked

    def let_go(self, epochs: int = 1000) -> None:
        self.executor.let_go(0, epochs)


class _Waits:
    """A `gone` that is never true: asked for the second time, its asker waits for another."""

    def __init__(self, waiting: threading.Semaphore) -> None:
        self._waiting, self._times = waiting, 0

    def __call__(self) -> bool:
        self._times += 1
        if self._times == 2:
            self._waiting.release()
        return False


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with closing(Records()) as records, ThreadPoolExecutor(16) as pool:
        crowd = Crowd(records, pool)
        yield crowd
        crowd.let_go()


def records_of(asked: Future[list[Trained]]) -> list[object]:
    return [trained.record for trained in asked.result(PATIENCE)]


def shared(asked: Future[list[Trained]]) -> list[bool]:
    return [trained.shared for trained in asked.result(PATIENCE)]


def test_asked_for_at_the_same_time_it_is_trained_once(crowd: Crowd) -> None:
    leader = crowd.lead()
    others = crowd.follow(7)
    crowd.let_go()
    assert [records_of(each) for each in (leader, *others)] == [told(begin(), [PLAN])] * 8
    assert [shared(each) for each in (leader, *others)] == [[False]] + [[True]] * 7
    assert len(crowd.executor.begun) == 1


def test_a_crowd_trains_each_epoch_of_a_run_once(crowd: Crowd) -> None:
    """Those who wait find the next epoch claimed before they are told of the last one."""
    leader = crowd.lead(PLANS)
    others = crowd.follow(7, PLANS)
    crowd.let_go()
    assert [records_of(each) for each in (leader, *others)] == [told(begin(), PLANS)] * 8
    assert sorted(crowd.executor.begun) == [(0, epoch) for epoch in range(1, 5)]


def test_epochs_are_known_as_soon_as_they_are_told(crowd: Crowd) -> None:
    """Whoever follows does not wait for the end of the leader's request."""
    leader = crowd.lead(PLANS)
    (other,) = crowd.follow(1, PLANS[:1])
    crowd.let_go(1)
    assert records_of(other) == told(begin(), PLANS[:1])
    assert not leader.done()


def test_who_follows_further_goes_on_alone(crowd: Crowd) -> None:
    leader = crowd.lead(PLANS[:2])
    (other,) = crowd.follow(1, PLANS)
    crowd.let_go()
    assert records_of(leader) == told(begin(), PLANS[:2])
    assert records_of(other) == told(begin(), PLANS)
    assert shared(other) == [True, True, False, False]


def test_graded_at_the_same_time_it_is_graded_once(crowd: Crowd) -> None:
    crowd.let_go(1)
    crowd.ask().result(PATIENCE)
    run = after(begin(), [PLAN])
    together = threading.Barrier(4)

    def graded(_: int) -> float:
        together.wait(PATIENCE)
        return crowd.runner.test_accuracy(run)

    with ThreadPoolExecutor(4) as pool:
        grades = pool.map(graded, range(4))
        eventually(lambda: (0, 0) in crowd.executor.begun, PATIENCE)
        crowd.let_go()
        assert list(grades) == [grade(run.key)] * 4
    assert crowd.executor.begun.count((0, 0)) == 1


def test_when_the_one_who_trains_fails_another_takes_over(crowd: Crowd) -> None:
    fails = threading.Event()

    def trouble(*_: object) -> None:
        crowd.executor.trouble = lambda order, epoch: None
        assert fails.wait(PATIENCE)
        raise ArithmeticError("worker")

    crowd.executor.trouble = trouble
    leader = crowd.lead()
    others = crowd.follow(5)
    fails.set()
    with pytest.raises(WorkerFailed, match="worker"):
        leader.result(PATIENCE)
    crowd.let_go()
    assert [records_of(each) for each in others] == [told(begin(), [PLAN])] * 5
    assert len(crowd.executor.begun) == 2


def test_when_the_one_who_trains_goes_away_another_takes_over(crowd: Crowd) -> None:
    leaving = threading.Event()
    leader = crowd.lead(PLANS, Asker(leaving.is_set))
    others = crowd.follow(5, PLANS)
    leaving.set()
    crowd.let_go()
    assert records_of(leader) == told(begin(), PLANS[:1])  # the epoch in progress came to its end
    assert [records_of(each) for each in others] == [told(begin(), PLANS)] * 5


def test_when_the_one_who_trains_is_closed_another_takes_over(crowd: Crowd) -> None:
    epochs = crowd.runner.train(begin(), PLANS)
    crowd.let_go(1)
    assert next(epochs).record == told(begin(), PLANS)[0]
    (other,) = crowd.follow(1, PLANS[:3])
    crowd.let_go()
    epochs.close()
    assert records_of(other) == told(begin(), PLANS[:3])


def test_whoever_waits_can_leave_at_once_and_disturbs_nobody(crowd: Crowd) -> None:
    leader = crowd.lead()
    leaving = threading.Event()
    leaver = crowd.ask(asker=Asker(leaving.is_set))
    (stayer,) = crowd.follow(1)
    leaving.set()
    assert leaver.result(PATIENCE) == []  # while the leader's epoch is still held
    assert not leader.done()
    crowd.let_go()
    assert records_of(stayer) == records_of(leader) == told(begin(), [PLAN])
    assert len(crowd.executor.begun) == 1
