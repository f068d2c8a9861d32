"""Workers that are killed, never start or have to end: what that costs, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict

import pools
import pytest
from executors import ENGINE, PATIENCE, PLAN, plan
from executors import begin as begin_run
from live import eventually, is_running
from pools import advanced, over, trained, workers_of
from states import begin, small

from ml_trainer_env.server.engine import varied
from ml_trainer_env.server.runtime import pool as pool_module
from ml_trainer_env.server.runtime.orders import Order
from ml_trainer_env.server.runtime.pool import LoadedData, Pool
from ml_trainer_env.server.runtime.runner import ATTEMPTS, STARTS, WorkerFailed, WorkerLost

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")
PLANS = [PLAN, plan(0.01), PLAN]


@pytest.fixture
def pool() -> Iterator[Pool]:
    with closing(Pool(1, load=pools.load)) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _little_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varied, "resident", small)


# Killed ---------------------------------------------------------------------------------------


def test_a_busy_worker_that_is_killed_costs_its_slice(pool: Pool) -> None:
    start = begin("hard_cifar", 5)
    runner = over(pool)
    run = trained(runner, start.run, PLANS[:1])
    (victim,) = workers_of(pool)
    victim.send_signal(signal.SIGSTOP)  # so that it is killed while it has the order
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(trained, runner, run, PLANS[1:])
        eventually(lambda: pool._busy, PATIENCE)
        victim.kill()
        assert asked.result(PATIENCE) == advanced(start, PLANS).run
    assert victim.returncode == -signal.SIGKILL
    assert [worker.pid for worker in workers_of(pool)] != [victim.pid]


def test_all_workers_are_killed_idle_and_busy() -> None:
    """More than an epoch has attempts; those that never had its order do not count."""
    start, idle = begin("easy_mnist", 5), ATTEMPTS + 1
    with closing(Pool(idle + 1, load=pools.load)) as pool:
        runner = over(pool)
        run = trained(runner, start.run, PLANS[:1])
        (busy,) = workers_of(pool)
        busy.send_signal(signal.SIGSTOP)  # so that it is killed while it has the order
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(trained, runner, run, PLANS[1:])
            eventually(lambda: pool._busy, PATIENCE)
            pool.prepare()
            victims = workers_of(pool)
            assert len(victims) == idle + 1
            for victim in (*(each for each in victims if each is not busy), busy):
                victim.kill()
                eventually(lambda pid=victim.pid: not is_running(pid), PATIENCE)
            assert asked.result(PATIENCE) == advanced(start, PLANS).run
        assert all(victim.returncode == -signal.SIGKILL for victim in victims)
        assert len(workers_of(pool)) == 1


def test_a_worker_that_died_before_it_had_the_order_is_no_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the pool cannot see at once who else has died."""
    monkeypatch.setattr(pool_module._Worker, "alive", True)
    start = begin("easy_mnist", 5)
    with closing(Pool(ATTEMPTS + 1, load=pools.load)) as pool:
        pool.prepare()
        for idle in pool._idle:
            idle.engine()  # it has started
        for worker in workers_of(pool):
            worker.kill()
            eventually(lambda pid=worker.pid: not is_running(pid), PATIENCE)
        assert trained(over(pool), start.run, PLANS) == advanced(start, PLANS).run


# Workers of another kind ----------------------------------------------------------------------

BEGINNING = f"""
import socket, sys
from ml_trainer_env.server.runtime.channel import Channel

channel = Channel(socket.socket(fileno=int(sys.argv[1])))
hello = {json.dumps({"engine": asdict(ENGINE)})!r}
"""
ENDS_AT_ONCE = BEGINNING
ENDS_AT_AN_ORDER = f"{BEGINNING}\nchannel.send(hello.encode())\nchannel.receive()"
WITHOUT_TORCH = """
import sys
from ml_trainer_env.server.runtime.worker import main

sys.modules["torch"] = None
main(int(sys.argv[1]), sys.argv[2])
"""
FAILS_TO_START = f'{BEGINNING}\nchannel.send(b\'{{"error": "Traceback: no engine here"}}\')'


class Launched:
    """Pools of workers that run another program, and the workers that they started."""

    def __init__(self) -> None:
        self.workers: list[subprocess.Popen[bytes]] = []

    def pool(self, program: str, load: Callable[[str], LoadedData] | None = pools.load) -> Pool:
        def launch(end: socket.socket, precision: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-P", "-c", program, str(end.fileno()), precision]
            self.workers.append(subprocess.Popen(command, pass_fds=[end.fileno()]))
            return self.workers[-1]

        return Pool(1, load=load, launch=launch)

    def count(self) -> int:
        """How many were started; all of them have ended, and none is left to be waited for."""
        assert all(worker.returncode is not None for worker in self.workers)
        return len(self.workers)


@pytest.fixture
def launched() -> Launched:
    return Launched()


def test_an_epoch_that_kills_every_worker_is_given_up(launched: Launched) -> None:
    with closing(launched.pool(ENDS_AT_AN_ORDER)) as pool:
        assert pool.engine() == ENGINE
        for attempts in (ATTEMPTS, 2 * ATTEMPTS):
            with pytest.raises(WorkerLost, match=f"{ATTEMPTS} workers were killed"):
                trained(over(pool), begin_run(), [PLAN])
            assert launched.count() == attempts
        assert not workers_of(pool)


def test_workers_that_never_start_are_given_up(launched: Launched) -> None:
    """Later, as one that was killed while it started says little about the epoch."""
    with closing(launched.pool(ENDS_AT_ONCE)) as pool:
        with pytest.raises(WorkerLost):
            trained(over(pool), begin_run(), [PLAN])
        assert launched.count() == STARTS
        with pytest.raises(WorkerLost):
            pool.engine()
        assert launched.count() == 2 * STARTS
        assert not workers_of(pool)


def test_workers_that_end_while_they_load_data_are_given_up(launched: Launched) -> None:
    with closing(launched.pool(ENDS_AT_AN_ORDER, load=None)) as pool:
        with pytest.raises(WorkerLost, match="while they loaded mnist"):
            pool.prepare(["mnist"])
        assert launched.count() == STARTS


def test_a_worker_that_cannot_start_says_why(launched: Launched) -> None:
    with closing(launched.pool(FAILS_TO_START)) as pool:
        for ask in (pool.engine, lambda: trained(over(pool), begin_run(), [PLAN])):
            with pytest.raises(WorkerFailed, match="no engine here"):
                ask()
        assert launched.count() == 2


def test_an_engine_that_cannot_be_had_is_told_with_its_traceback(launched: Launched) -> None:
    with closing(launched.pool(WITHOUT_TORCH)) as pool:
        with pytest.raises(WorkerFailed, match=r"Traceback(.*\n)*.*torch"):
            pool.engine()
        assert launched.count() == 1


# Nobody is left behind ------------------------------------------------------------------------


def test_whoever_leaves_in_the_middle_of_an_order_costs_the_worker(pool: Pool) -> None:
    """It is in the middle of an epoch that nobody wants."""
    start = begin("easy_mnist", 0)
    order = Order(
        workload=start.run.workload, seed=0, precision="fp32", state=None, plans=tuple(PLANS)
    )
    with pool.perform(order, None):
        (before,) = workers_of(pool)
    assert before.returncode is not None
    assert not workers_of(pool)
    assert trained(over(pool), start.run, PLANS) == advanced(start, PLANS).run


def test_closing_a_request_keeps_the_worker(pool: Pool) -> None:
    start = begin("easy_mnist", 0)
    runner = over(pool)
    with closing(runner.train(start.run, PLANS)) as epochs:
        first = next(epochs)
    (worker,) = workers_of(pool)
    assert first.record == advanced(start, PLANS[:1]).run.history[0]
    assert trained(runner, start.run, PLANS) == advanced(start, PLANS).run
    assert workers_of(pool) == [worker]


def test_closing_ends_the_workers(pool: Pool) -> None:
    start = begin("easy_mnist", 0)
    trained(over(pool), start.run, [PLAN])
    (worker,) = workers_of(pool)
    pool.close()
    assert worker.returncode == 0
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            trained(over(pool), start.run, [PLAN])
        pool.close()


def test_a_worker_that_is_busy_when_the_pool_closes_ends_afterwards(pool: Pool) -> None:
    start = begin("easy_mnist", 0)
    runner = over(pool)
    pool.engine()
    (worker,) = workers_of(pool)
    worker.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(trained, runner, start.run, [PLAN])
        eventually(lambda: pool._busy and not next(iter(pool._busy)).ready, PATIENCE)
        pool.close()
        worker.send_signal(signal.SIGCONT)
        assert asked.result(PATIENCE) == advanced(start, [PLAN]).run
    assert worker.returncode == 0


SERVER = """
import sys, threading
from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.pool import Pool
from ml_trainer_env.server.runtime.runner import SliceRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.session import process
from ml_trainer_env.server.tasks import TASKS

pool = Pool(2)
pool.prepare()
if sys.argv[1:]:
    runner = SliceRunner(pool, Cores(1, 2), States(10**9))
    run = process.begin(runner.engine(), TASKS["hard_cifar"], 0)
    plan = EpochPlan.model_validate_json(sys.argv[1])
    epochs = runner.train(run, [plan] * 1000)
    next(epochs)  # and another one is in progress
print(*(worker.pid for worker in pool.processes()), flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("busy", [True, False])
def test_workers_end_with_a_server_that_is_killed(busy: bool) -> None:
    """In the middle of an epoch, or while they still load torch."""
    command = [sys.executable, "-c", SERVER, *([PLAN.model_dump_json()] if busy else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        workers = [int(pid) for pid in server.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(is_running, workers))
        os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not any(map(is_running, workers)), PATIENCE)
