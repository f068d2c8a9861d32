"""Lending cores: never more than there are, in the order of asking, for a turn at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from executors import PATIENCE, PLAN, Clock, FakeExecutor, begin, grade, told
from live import eventually

from ml_trainer_env.server.runtime import cores as lending
from ml_trainer_env.server.runtime.asking import Asker, CalledOff, QueueFull
from ml_trainer_env.server.runtime.cores import ROUND, SLICE, Cores
from ml_trainer_env.server.runtime.runner import SliceRunner, Trained, WorkerFailed
from ml_trainer_env.server.runtime.states import States

ROOMY = 10**9


class Crowd:
    """Asks for epochs, each from a thread of its own; they wait until they are let go."""

    def __init__(self, executor: FakeExecutor, cores: Cores, pool: ThreadPoolExecutor) -> None:
        self.executor, self.cores, self._pool = executor, cores, pool
        self.runner = SliceRunner(executor, cores, States(ROOMY))
        self.asked: dict[int, Future[Any]] = {}

    def ask(self, seed: int, epochs: int = 1, who: object = None) -> None:
        """Returns once the first epoch has begun or waits in the queue."""
        self._submit(seed, partial(self._train, seed, [PLAN] * epochs, Asker(who=who)))

    def ask_for_a_grade(self, seed: int) -> None:
        self._submit(seed, partial(self.runner.test_accuracy, begin(seed)))

    def finish(self, seed: int) -> Any:
        self.executor.let_go(seed, 100)
        return self.asked[seed].result(PATIENCE)

    def settle(self, begun: int, waiting: int = 0) -> None:
        """Wait until so many epochs have begun, and as many askers wait for a core."""
        counts = (begun, waiting)
        eventually(lambda: (len(self.executor.begun), self.cores.waiting) == counts, PATIENCE)

    def _train(self, seed: int, plans: list[Any], asker: Asker) -> list[Trained]:
        return list(self.runner.train(begin(seed), plans, asker))

    def _submit(self, seed: int, call: Any) -> None:
        self.executor.hold(seed)
        before = len(self.executor.begun) + self.cores.waiting
        self.asked[seed] = self._pool.submit(call)
        eventually(lambda: len(self.executor.begun) + self.cores.waiting > before, PATIENCE)


@contextmanager
def crowd(threads: int, cores: int, executor: FakeExecutor | None = None) -> Iterator[Crowd]:
    with ThreadPoolExecutor(40) as pool:
        each = Crowd(executor or FakeExecutor(), Cores(threads, cores), pool)
        try:
            yield each
        finally:
            for seed in each.asked:
                each.executor.let_go(seed, 100)


@contextmanager
def waiting(cores: Cores, count: int) -> Iterator[None]:
    """So many who wait until the block ends."""
    leave = threading.Event()

    def wait() -> None:
        with suppress(CalledOff), cores.lend(Asker(leave.is_set)):
            raise AssertionError("a core came free")

    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(wait) for _ in range(count)]
        try:
            eventually(lambda: cores.waiting == count, PATIENCE)
            yield
        finally:
            leave.set()
        for each in asked:
            each.result(PATIENCE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lending, "time", clock)
    return clock


# How many threads -----------------------------------------------------------------------------


def test_a_training_alone_is_lent_all_its_threads() -> None:
    with crowd(threads=2, cores=2) as each:
        for seed in range(2):
            each.ask(seed)
            assert [t.record for t in each.finish(seed)] == told(begin(seed), [PLAN])
        assert each.executor.threads == [2, 2]


@pytest.mark.parametrize(("threads", "cores", "lent"), [(1, 4, 1), (4, 2, 2), (2, 1, 1), (3, 8, 3)])
def test_no_more_than_asked_for_and_no_more_than_there_are(
    threads: int, cores: int, lent: int
) -> None:
    with crowd(threads, cores) as each:
        each.ask(0)
        each.finish(0)
        assert each.executor.threads == [lent]


def test_with_others_waiting_each_is_lent_one() -> None:
    with crowd(threads=2, cores=2) as each:
        for seed in range(6):
            each.ask(seed)
        assert each.executor.threads == [2]  # came when nobody else was there
        for seed in range(6):
            each.finish(seed)
            begun = min(6, seed + 3)
            each.settle(begun, 6 - begun)
        assert each.executor.threads[:5] == [2, 1, 1, 1, 1]
        assert each.executor.most == 2


def test_a_second_thread_is_taken_back_when_somebody_comes() -> None:
    with crowd(threads=2, cores=2) as each:
        each.ask(0, epochs=9, who="first")
        each.ask(1, who="second")
        each.executor.let_go(0)
        each.settle(begun=2, waiting=1)  # the epoch that is stopped at its end
        each.executor.let_go(0)
        each.settle(begun=4)  # side by side
        assert each.executor.threads == [2, 2, 1, 1]
        assert sorted(each.executor.begun[2:]) == [(0, 3), (1, 1)]


def test_two_that_take_turns_are_not_alone() -> None:
    """Who comes after another gets one thread, and two once it has been alone for a turn."""
    with crowd(threads=2, cores=2) as each:
        each.ask(0, who="first")
        each.finish(0)
        for seed in (1, 2):
            each.ask(seed, who="second")
            each.finish(seed)
        assert each.executor.threads == [2, 1, 2]


@pytest.mark.parametrize("number", [0, -1])
def test_nobody_trains_on_no_thread(number: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        Cores(number)
    with pytest.raises(ValueError, match="cores"):
        Cores(1, number)


@pytest.mark.parametrize(("threads", "cores"), [(1, 1), (2, 2), (2, 3), (4, 4), (2, 5)])
def test_never_more_busy_threads_than_cores(threads: int, cores: int) -> None:
    executor, seeds = FakeExecutor(), range(30)
    executor.trouble = lambda order, epoch: time.sleep(0.001)  # so that others come meanwhile
    runner = SliceRunner(executor, Cores(threads, cores), States(ROOMY))

    def train(seed: int) -> list[Any]:
        return [t.record for t in runner.train(begin(seed), [PLAN] * 3, Asker(who=seed))]

    with ThreadPoolExecutor(len(seeds)) as pool:
        assert list(pool.map(train, seeds)) == [told(begin(seed), [PLAN] * 3) for seed in seeds]
    assert executor.most <= cores
    assert executor.busy == 0


# In which order -------------------------------------------------------------------------------


def test_turns_come_in_the_order_of_asking() -> None:
    with crowd(threads=1, cores=1) as each:
        for seed in range(8):
            each.ask(seed)
        for seed in range(8):
            each.settle(begun=seed + 1, waiting=7 - seed)
            each.finish(seed)
        assert each.executor.begun == [(seed, 1) for seed in range(8)]


def test_grading_takes_its_place_in_the_queue() -> None:
    with crowd(threads=1, cores=1) as each:
        each.ask(0)
        each.ask_for_a_grade(1)
        each.ask(2)
        assert each.executor.begun == [(0, 1)]
        each.finish(0)
        assert each.finish(1) == grade(begin(1).key)
        each.finish(2)
        assert each.executor.begun == [(0, 1), (1, 0), (2, 1)]


def test_one_that_fails_gives_its_cores_back() -> None:
    executor = FakeExecutor()

    def bad(*_: object) -> None:
        executor.trouble = lambda order, epoch: None
        raise ArithmeticError("once")

    executor.trouble = bad
    with crowd(threads=2, cores=2, executor=executor) as each:
        each.ask(0)
        with pytest.raises(WorkerFailed, match="once"):
            each.finish(0)
        each.ask(1)
        each.finish(1)
        assert each.executor.threads == [2, 2]


# Slices ---------------------------------------------------------------------------------------


def test_long_requests_take_turns(clock: Clock) -> None:
    """Epochs as long as a slice: one each."""
    with crowd(threads=1, cores=1, executor=FakeExecutor(clock, SLICE)) as each:
        each.ask(0, epochs=3)
        each.ask(1, epochs=3)
        for begun in range(1, 5):
            each.settle(begun, waiting=1)
            each.executor.let_go((begun - 1) % 2)
        each.settle(5, waiting=1)
        for seed in range(2):
            assert [t.record for t in each.finish(seed)] == told(begin(seed), [PLAN] * 3)
        assert each.executor.begun == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)]


def test_short_epochs_share_a_slice(clock: Clock) -> None:
    with crowd(threads=1, cores=1, executor=FakeExecutor(clock, SLICE / 4)) as each:
        each.ask(0, epochs=5)
        each.ask(1)
        for seed in range(2):
            each.executor.let_go(seed, 5)
        for seed in range(2):
            each.finish(seed)
        assert each.executor.begun == [*((0, n) for n in range(1, 5)), (1, 1), (0, 5)]


def test_a_turn_ends_when_others_have_waited_a_slice(clock: Clock) -> None:
    cores = Cores(1, 1)
    with cores.lend() as turn:
        clock.now += 100 * SLICE
        assert not turn.over()  # nobody waits
    with cores.lend() as turn, waiting(cores, 1):
        assert not turn.over()
        clock.now += SLICE * 0.9
        assert not turn.over()
        clock.now += SLICE * 0.2
        assert turn.over()


def test_turns_are_shorter_in_a_crowd(clock: Clock) -> None:
    """So that each of it has had one within a round."""
    cores = Cores(1, 2)
    with cores.lend() as turn, cores.lend():
        assert turn.seconds == SLICE
        with waiting(cores, 4):
            assert turn.seconds == SLICE  # 6 on 2 cores are through in less than a round
        with waiting(cores, 38):
            assert turn.seconds == ROUND / 20  # 40 on 2 cores
            clock.now += ROUND / 16
            assert turn.over()
        assert not turn.over()


def test_more_than_one_core_is_given_back_at_once(clock: Clock) -> None:
    cores = Cores(2, 2)
    with cores.lend() as turn:
        assert turn.threads == 2
        assert not turn.over()
        with waiting(cores, 1):
            assert turn.over()


# The queue ------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_says_when_to_come_again(clock: Clock) -> None:
    cores = Cores(1, 1, max_waiting=4)
    with cores.lend():
        clock.now += 3.0  # the mean of a turn
    with (
        cores.lend(),
        waiting(cores, 4),
        pytest.raises(QueueFull, match=r"4 trainings wait.* about 12 s"),
        cores.lend(Asker()),
    ):
        raise AssertionError("it was full")
    with cores.lend(Asker()):  # and free again
        assert cores.waiting == 0


def test_who_was_served_before_is_never_refused(clock: Clock) -> None:
    """A request of several slices comes to its end, whatever queue has formed meanwhile."""
    executor = FakeExecutor(clock, SLICE)
    with ThreadPoolExecutor(4) as pool:
        each = Crowd(executor, Cores(1, 1, max_waiting=1), pool)
        each.ask(0, epochs=3)
        each.ask(1)  # the queue is full
        with pytest.raises(QueueFull):
            next(each.runner.train(begin(2), [PLAN]))
        each.executor.let_go(0)
        each.settle(begun=2, waiting=1)  # 0 waits, though the queue was full until just now
        graded = pool.submit(each.runner.test_accuracy, begin(3))  # so is a grade
        each.settle(begun=2, waiting=2)
        each.finish(1)
        assert len(each.finish(0)) == 3
        assert graded.result(PATIENCE) == grade(begin(3).key)


def test_in_the_queue_one_can_leave_at_once() -> None:
    executor, cores = FakeExecutor(), Cores(1, 1)
    runner = SliceRunner(executor, cores, States(ROOMY))
    leaving = threading.Event()
    with ThreadPoolExecutor(1) as pool, cores.lend():
        asked = pool.submit(list, runner.train(begin(), [PLAN], Asker(leaving.is_set)))
        eventually(lambda: cores.waiting == 1, PATIENCE)
        leaving.set()
        assert asked.result(PATIENCE) == []  # while the core is still lent
        assert cores.waiting == 0
    assert not executor.orders
    with cores.lend(Asker(lambda: True)) as turn:  # a turn that comes at once is taken
        assert turn.threads == 1


# Bells ----------------------------------------------------------------------------------------


def test_who_waits_is_woken_by_the_bell_and_not_by_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "patience", lambda _: 600.0)
    cores, leaving = Cores(1, 1), threading.Event()
    asker = Asker(leaving.is_set)

    def wait() -> None:
        with cores.lend(asker):
            raise AssertionError("it was to leave")

    with cores.lend(), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        eventually(lambda: cores.waiting)
        leaving.set()
        asker.bell.ring()
        with pytest.raises(CalledOff):
            waiting.result(20)
    assert cores.waiting == 0
    asker.bell.ring()  # nobody sleeps any more


# Cores that come and go ---------------------------------------------------------------------------


def test_cores_that_come_are_lent_to_those_who_wait() -> None:
    with crowd(threads=2, cores=1) as each:
        each.cores.resize(0, 1)
        for seed in range(3):
            each.ask(seed)
        each.settle(begun=0, waiting=3)
        each.cores.resize(2, 1)
        each.settle(begun=2, waiting=1)
        assert [len(each.finish(seed)) for seed in range(3)] == [1, 1, 1]


def test_cores_that_go_while_they_are_lent_are_not_lent_again() -> None:
    with crowd(threads=1, cores=2) as each:
        each.ask(0)
        each.ask(1)
        each.settle(begun=2)
        each.cores.resize(1, 1)
        each.ask(2)
        each.settle(begun=2, waiting=1)
        each.finish(0)
        each.settle(begun=2, waiting=1)
        each.finish(1)
        each.settle(begun=3)
        each.finish(2)
        assert (each.cores._free, each.cores.total) == (1, 1)


def test_nobody_is_lent_more_cores_than_there_are_side_by_side() -> None:
    cores = Cores(threads=4, total=8)
    cores.resize(8, 2)
    with cores.lend() as turn:
        assert turn.threads == 2
    cores.resize(8, 16)
    with cores.lend() as turn:
        assert turn.threads == 4
