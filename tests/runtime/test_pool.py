"""Worker processes: the engine's bits, whoever is killed, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from live import eventually
from states import PLAN, begin, plan, small, value

from ml_trainer_env.server import trainer
from ml_trainer_env.server.datasets import DatasetUnavailable
from ml_trainer_env.server.engine.resident import Resident
from ml_trainer_env.server.runtime import pool as pools
from ml_trainer_env.server.runtime import state_bytes
from ml_trainer_env.server.runtime.asking import Asker, CalledOff
from ml_trainer_env.server.runtime.pool import PoolRunner, WorkerFailed, WorkerLost
from ml_trainer_env.server.runtime.shared_data import SPLITS, attach, share
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.trainer import TrainingState

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")
PATIENCE = 60  # seconds


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[PoolRunner]:
    """Two workers for all tests that do no harm to them."""
    pool = PoolRunner(threads=2, cores=2, load=small)
    yield pool
    pool.close()


@pytest.fixture
def pool() -> Iterator[PoolRunner]:
    """A pool that a test may harm."""
    pool = PoolRunner(threads=1, cores=1, load=small)
    yield pool
    pool.close()


def inline(monkeypatch: pytest.MonkeyPatch, state: TrainingState, *plans: Any) -> TrainingState:
    """What the engine makes of it in this process."""
    monkeypatch.setattr(trainer, "resident", small)
    for each in plans:
        state = trainer.advance(state, each)
    return state


def running(pid: int) -> bool:
    """Whether the process does anything any more; one that ended may wait to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# The same bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", TASKS)
def test_the_bits_are_the_engines(
    monkeypatch: pytest.MonkeyPatch, shared_pool: PoolRunner, task_id: str
) -> None:
    plans = [PLAN, plan(0.01), PLAN]
    expected = inline(monkeypatch, begin(task_id, 3), *plans)
    state = begin(task_id, 3)
    for each in plans:
        state = shared_pool.advance(state, each)
    assert value(state) == value(expected)
    assert shared_pool.test_accuracy(state) == trainer.test_accuracy(expected)


def test_beside_others_the_bits_are_the_same(
    monkeypatch: pytest.MonkeyPatch, shared_pool: PoolRunner
) -> None:
    starts = [begin("medium_fashion", seed) for seed in range(4)]
    expected = [value(inline(monkeypatch, start, PLAN)) for start in starts]
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(lambda start: shared_pool.advance(start, PLAN), starts)
        assert [value(state) for state in together] == expected
    assert len(shared_pool._idle) == 2


def test_a_diverged_epoch_leaves_the_best_checkpoint(
    monkeypatch: pytest.MonkeyPatch, shared_pool: PoolRunner
) -> None:
    wild = plan(1e9).model_copy(update={"optimizer": "sgd"})
    plans = [PLAN, wild]
    state = begin("easy_mnist", 0)
    expected = inline(monkeypatch, state, *plans)
    good = shared_pool.advance(state, PLAN)
    after = shared_pool.advance(good, wild)
    assert value(after) == value(expected)
    assert after.history[-1].diverged
    assert after.current is after.best_checkpoint is good.best_checkpoint


def test_a_checkpoint_that_stays_the_best_is_kept_once(
    shared_pool: PoolRunner,
) -> None:
    state = begin("easy_mnist", 0)
    for _ in range(6):
        after = shared_pool.advance(state, plan(0.05))
        if after.best == state.best:
            assert after.best_checkpoint is state.best_checkpoint
        state = after


# A worker holds on to the state that it made last ---------------------------------------------


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the states that were made into bytes for a worker."""
    keys: list[str] = []
    pack = state_bytes.pack

    def noted(state: TrainingState) -> bytes:
        keys.append(state.key)
        return pack(state)

    monkeypatch.setattr(state_bytes, "pack", noted)
    return keys


def test_a_training_that_goes_on_sends_its_state_once(pool: PoolRunner, sent: list[str]) -> None:
    start = state = begin("hard_cifar", 0)
    for _ in range(3):
        state = pool.advance(state, PLAN)
    pool.test_accuracy(state)
    pool.advance(state, PLAN)
    assert sent == [start.key]


def test_what_another_training_pushed_out_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, pool: PoolRunner, sent: list[str]
) -> None:
    starts = [begin("easy_mnist", seed) for seed in range(2)]
    first = [pool.advance(state, PLAN) for state in starts]
    second = [pool.advance(state, plan(0.02)) for state in reversed(first)]
    assert sent == [starts[0].key, starts[1].key, first[0].key]  # first[1] was held
    expected = [inline(monkeypatch, state, PLAN, plan(0.02)) for state in reversed(starts)]
    assert list(map(value, second)) == list(map(value, expected))


def test_a_held_state_may_be_left_in_several_ways(
    monkeypatch: pytest.MonkeyPatch, pool: PoolRunner
) -> None:
    start = begin("medium_fashion", 0)
    first = pool.advance(start, PLAN)
    branches = [value(pool.advance(first, plan(rate))) for rate in (0.01, 0.02)]
    expected = [value(inline(monkeypatch, start, PLAN, plan(rate))) for rate in (0.01, 0.02)]
    assert branches == expected


# Data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_shared_data_are_the_data(name: str) -> None:
    data = small(name)
    file, places = share(data)
    with file:
        mapped = attach(file.fileno(), places)
    for split in SPLITS:
        one, other = getattr(data, split), getattr(mapped, split)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.images.stride() == other.images.stride()
    assert (data.train_labels == mapped.train_labels).all()


def test_workers_map_one_file(shared_pool: PoolRunner) -> None:
    shared_pool.prepare(["mnist"])
    with ThreadPoolExecutor(4) as threads:
        starts = [begin("easy_mnist", seed) for seed in range(4)]
        list(threads.map(lambda start: shared_pool.advance(start, PLAN), starts))
    inode = os.fstat(shared_pool._data["mnist"].file.fileno()).st_ino
    maps = [Path(f"/proc/{w.process.pid}/maps") for w in shared_pool._idle if w._has]
    assert maps
    for each in maps:
        assert f" {inode} " in each.read_text()


def test_missing_data_are_told_to_whoever_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Resident:
        raise DatasetUnavailable(name)

    pool = PoolRunner(load=missing)
    with pytest.raises(DatasetUnavailable):
        pool.advance(begin("easy_mnist", 0), PLAN)
    pool.close()


# Workers that die -----------------------------------------------------------------------------


def test_a_worker_that_is_killed_costs_its_epoch(
    monkeypatch: pytest.MonkeyPatch, pool: PoolRunner
) -> None:
    start = begin("hard_cifar", 5)
    expected = inline(monkeypatch, start, PLAN, PLAN)
    first = pool.advance(start, PLAN)
    victim = pool._idle[0].process
    victim.send_signal(signal.SIGSTOP)  # so that it is killed while it has the job
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(pool.advance, first, PLAN)
        eventually(lambda: not pool._idle, PATIENCE)
        victim.kill()
        assert value(asked.result(PATIENCE)) == value(expected)
    assert [worker.process.pid for worker in pool._idle] != [victim.pid]
    assert victim.returncode == -signal.SIGKILL


def test_idle_workers_that_died_are_replaced(
    monkeypatch: pytest.MonkeyPatch, shared_pool: PoolRunner
) -> None:
    shared_pool.prepare()
    for worker in shared_pool._idle:
        worker.process.kill()
    state = begin("easy_mnist", 5)
    assert value(shared_pool.advance(state, PLAN)) == value(inline(monkeypatch, state, PLAN))


@pytest.mark.parametrize("started", [True, False])
def test_an_epoch_that_kills_every_worker_is_given_up(
    monkeypatch: pytest.MonkeyPatch, pool: PoolRunner, started: bool
) -> None:
    """A worker that is killed while it starts says little about the epoch."""
    answer = pools._Worker.answer
    tried: list[int] = []

    def killed(worker: Any, *job: Any) -> Any:
        tried.append(worker.process.pid)
        if started:
            worker.wait_until_started()
        worker.process.kill()
        return answer(worker, *job)

    monkeypatch.setattr(pools._Worker, "answer", killed)
    with pytest.raises(WorkerLost):
        pool.advance(begin("easy_mnist", 0), PLAN)
    assert len(set(tried)) == (pools.ATTEMPTS if started else pools.STARTS)
    assert not any(map(running, tried))


def test_what_the_engine_raises_reaches_whoever_asked(pool: PoolRunner) -> None:
    state = begin("easy_mnist", 0)
    impossible = plan().model_copy(update={"batch_size": 0})
    with pytest.raises(WorkerFailed, match="Error"):
        pool.advance(state, impossible)
    pid = pool._idle[0].process.pid
    pool.advance(state, PLAN)  # by the same worker
    assert pool._idle[0].process.pid == pid


# Turns ----------------------------------------------------------------------------------------


class Teller:
    """Stands for a worker: notes the jobs, and holds them until it is let go."""

    def __init__(self) -> None:
        self.jobs: list[tuple[int, int]] = []  # seed, threads
        self.gate = threading.Semaphore(0)

    def __call__(self, head: Any, state: TrainingState, body: bytes, data: Any) -> Any:
        assert value(state_bytes.unpack(body)) == value(state)
        self.jobs.append((state.seed, head["threads"]))
        assert self.gate.acquire(timeout=PATIENCE)
        return pools.Message({}, body, None)


@pytest.fixture
def teller(monkeypatch: pytest.MonkeyPatch) -> Teller:
    teller = Teller()
    monkeypatch.setattr(pools._Worker, "answer", teller)
    return teller


def test_two_threads_alone_one_each_in_a_crowd_in_the_order_of_asking(
    shared_pool: PoolRunner, teller: Teller
) -> None:
    with ThreadPoolExecutor(6) as threads:
        asked = []
        for seed in range(6):
            asked.append(threads.submit(shared_pool.advance, begin("easy_mnist", seed), PLAN))
            eventually(lambda n=seed: len(teller.jobs) + shared_pool._cores.waiting > n, PATIENCE)
        assert teller.jobs == [(0, 2)]
        for done in range(6):
            teller.gate.release()
            eventually(lambda n=done: len(teller.jobs) >= min(6, n + 3), PATIENCE)
        for each in asked:
            each.result(PATIENCE)
    order = [seed for seed, _ in teller.jobs]
    # The second and the third are lent a core at the same moment.
    assert [order[0], sorted(order[1:3]), *order[3:]] == [0, [1, 2], 3, 4, 5]
    assert [lent for _, lent in teller.jobs][:5] == [2, 1, 1, 1, 1]


def test_in_the_queue_one_can_leave_at_once(shared_pool: PoolRunner, teller: Teller) -> None:
    state, leaving = begin("easy_mnist", 0), threading.Event()
    with ThreadPoolExecutor(2) as threads:
        busy = threads.submit(shared_pool.advance, state, PLAN)
        eventually(lambda: teller.jobs, PATIENCE)
        leaver = threads.submit(shared_pool.advance, state, PLAN, Asker(leaving.is_set))
        eventually(lambda: shared_pool._cores.waiting, PATIENCE)
        leaving.set()
        with pytest.raises(CalledOff):
            leaver.result(5)
        teller.gate.release()
        busy.result(PATIENCE)


# Nobody is left behind ------------------------------------------------------------------------


def test_closing_ends_the_workers(pool: PoolRunner) -> None:
    pool.advance(begin("easy_mnist", 0), PLAN)
    worker = pool._idle[0].process
    pool.close()
    assert worker.returncode == 0
    with pytest.raises(RuntimeError, match="closed"):
        pool.advance(begin("easy_mnist", 0), PLAN)


PARENT = """
import sys, time
from ml_trainer_env.server.runtime.pool import PoolRunner
pool = PoolRunner(threads=1, cores=2)
pool.prepare()
print(*(worker.process.pid for worker in pool._idle), flush=True)
time.sleep(600)
"""


def test_workers_end_with_a_parent_that_is_killed() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(running, workers))
        parent.kill()
    eventually(lambda: not any(map(running, workers)), PATIENCE)
