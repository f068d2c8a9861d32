"""Worker processes: the engine's bits, one copy of the data, and no torch where they are asked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pools
import pytest
import torch
from executors import PLAN, plan
from pools import advanced, over, trained
from real import tensors_of
from states import begin, small, value

from ml_trainer_env.models import EpochPlan, EpochRecord
from ml_trainer_env.server import runs, trainer
from ml_trainer_env.server.datasets import DatasetUnavailable
from ml_trainer_env.server.engine import varied
from ml_trainer_env.server.engine.resident import resident
from ml_trainer_env.server.runs import Run, Scale, Workload
from ml_trainer_env.server.runtime import pool as pool_module
from ml_trainer_env.server.runtime.channel import Channel
from ml_trainer_env.server.runtime.pool import LoadedData, Pool
from ml_trainer_env.server.runtime.runner import WorkerFailed
from ml_trainer_env.server.runtime.shared_data import SPLITS, attach, share
from ml_trainer_env.server.runtime.states import SUFFIX
from ml_trainer_env.server.tasks import TASKS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")
PLANS = [PLAN, plan(0.01), PLAN]


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[Pool]:
    """Two workers for all tests that do no harm to them."""
    with closing(Pool(2, load=pools.load)) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _little_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varied, "resident", small)


# The same bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", TASKS)
def test_the_bits_are_the_engines(shared_pool: Pool, task_id: str) -> None:
    """In one request or in several, on two threads and with files for states in a folder or not."""
    start = begin(task_id, 3)
    expected = advanced(start, PLANS)
    runner = over(shared_pool, threads=2, cores=2)
    assert runner.engine() == trainer.engine()
    assert trained(runner, start.run, PLANS) == expected.run
    assert value(tensors_of(expected.run, runner)) == value(expected)
    assert runner.test_accuracy(expected.run) == trainer.test_accuracy(expected)
    runner, run = over(shared_pool), start.run
    for each in PLANS:
        run = trained(runner, run, [each])
    assert run == expected.run
    assert value(tensors_of(expected.run, runner)) == value(expected)


def test_states_in_a_folder_are_the_same(shared_pool: Pool, tmp_path: Path) -> None:
    start = begin("easy_mnist", 3)
    expected = advanced(start, PLANS)
    first = trained(over(shared_pool, folder=tmp_path), start.run, PLANS[:2])
    runner = over(shared_pool, folder=tmp_path)  # of the next process
    assert trained(runner, first, PLANS[2:]) == expected.run
    assert value(tensors_of(expected.run, runner)) == value(expected)
    assert (tmp_path / f"{expected.key}{SUFFIX}").exists()


def test_beside_others_the_bits_are_the_same(shared_pool: Pool) -> None:
    starts = [begin("medium_fashion", seed) for seed in range(4)]
    runner = over(shared_pool, cores=2)
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(lambda start: trained(runner, start.run, PLANS), starts)
        assert list(together) == [advanced(start, PLANS).run for start in starts]
    assert len(shared_pool.processes()) == 2


def test_a_diverged_epoch_leaves_the_best_checkpoint(shared_pool: Pool) -> None:
    wild = plan(1e9).model_copy(update={"optimizer": "sgd"})
    start = begin("easy_mnist", 0)
    runner = over(shared_pool)
    expected = advanced(start, [PLAN, wild])
    assert trained(runner, start.run, [PLAN, wild, PLAN]) == expected.run
    assert expected.run.history[-1].diverged
    after = tensors_of(expected.run, runner)
    assert value(after) == value(expected)
    assert after.current is after.best_checkpoint
    going_on = advanced(expected, [PLAN])
    assert trained(runner, expected.run, [PLAN]) == going_on.run


def test_without_room_for_states_the_bits_are_the_same(shared_pool: Pool) -> None:
    start = begin("easy_mnist", 4)
    expected = advanced(start, PLANS)
    runner = over(shared_pool, budget=0)
    run = trained(runner, start.run, PLANS[:2])
    assert trained(runner, run, PLANS[2:]) == expected.run
    assert runner.test_accuracy(expected.run) == trainer.test_accuracy(expected)


# A worker holds on to the state that it made last ---------------------------------------------


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files went to a worker with each order: its state, and once the data."""
    counts: list[int] = []

    class Noted(Channel):
        def send(self, text: bytes, files: Sequence[int] = ()) -> None:
            counts.append(len(files))
            super().send(text, files)

    monkeypatch.setattr(pool_module, "Channel", Noted)
    return counts


def of_one_worker() -> Pool:
    return Pool(1, load=pools.load)


def test_a_training_that_goes_on_is_sent_no_state(sent: list[int]) -> None:
    run = begin("hard_cifar", 0).run
    with closing(of_one_worker()) as pool:
        runner = over(pool)
        for _ in range(3):
            run = trained(runner, run, [PLAN])
        runner.test_accuracy(run)
        trained(runner, run, [PLAN])
    assert sent == [1, 0, 0, 0, 0]


def test_what_another_training_pushed_out_is_sent_again(sent: list[int]) -> None:
    starts = [begin("easy_mnist", seed) for seed in range(2)]
    with closing(of_one_worker()) as pool:
        runner = over(pool)
        first = [trained(runner, start.run, [PLAN]) for start in starts]
        second = [trained(runner, run, [plan(0.02)]) for run in reversed(first)]
    assert sent == [1, 0, 0, 1]  # the second one was held
    assert second == [advanced(start, [PLAN, plan(0.02)]).run for start in reversed(starts)]


def test_a_held_state_may_be_left_in_several_ways(sent: list[int]) -> None:
    start = begin("medium_fashion", 0)
    with closing(of_one_worker()) as pool:
        runner = over(pool)
        first = trained(runner, start.run, [PLAN])
        branches = [trained(runner, first, [plan(rate)]) for rate in (0.01, 0.02)]
    assert branches == [advanced(start, [PLAN, plan(rate)]).run for rate in (0.01, 0.02)]
    assert sent == [1, 0, 1]


def test_a_training_goes_back_to_the_worker_that_holds_its_state(sent: list[int]) -> None:
    with closing(Pool(2, load=pools.load)) as pool:
        pool.prepare()
        runner = over(pool)
        first = [trained(runner, begin("easy_mnist", seed).run, [PLAN]) for seed in range(2)]
        for run in first:
            trained(runner, run, [PLAN])
    assert sent == [1, 1, 0, 0]


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


def test_workers_map_one_file(shared_pool: Pool) -> None:
    shared_pool.prepare(["mnist"])
    runner = over(shared_pool, cores=2)
    runs = [begin("easy_mnist", seed).run for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda run: trained(runner, run, [PLAN]), runs))
    data = pools.load("mnist")
    inode = os.fstat(data.file).st_ino
    os.close(data.file)
    maps = [Path(f"/proc/{worker.pid}/maps").read_text() for worker in shared_pool.processes()]
    mapped = [each.count(f" {inode} ") for each in maps]
    assert len(mapped) == 2
    assert max(mapped) == 1  # one of them may never have had its turn


def test_missing_data_are_told_to_whoever_trains() -> None:
    def missing(name: str) -> LoadedData:
        raise DatasetUnavailable(name)

    with closing(Pool(1, load=missing)) as pool, pytest.raises(DatasetUnavailable):
        trained(over(pool), begin("easy_mnist", 0).run, [PLAN])


def of_workload(workload: Workload) -> Run:
    return runs.begin(workload, 0, trainer.engine())


def test_what_a_worker_raises_is_told_and_it_goes_on() -> None:
    with closing(Pool(1)) as pool:
        runner = over(pool)
        with pytest.raises(WorkerFailed, match=r"Traceback.*(\n.*)*ValueError: .*nothing"):
            trained(
                runner, of_workload(Workload("mnist_mlp", "nothing", 1, 1, Scale(0, 1))), [PLAN]
            )
        with closing(Pool(1, load=pools.load)) as other:
            with pytest.raises(WorkerFailed, match=r"Traceback.*(\n.*)*KeyError: 'nothing'"):
                trained(
                    over(other),
                    of_workload(Workload("nothing", "mnist", 1, 1, Scale(0, 1))),
                    [PLAN],
                )
            for each, workers in ((pool, 1), (other, 1)):
                assert len(each.processes()) == workers
            (before,) = other.processes()
            start = begin("easy_mnist", 0)
            assert trained(over(other), start.run, [PLAN]) == advanced(start, [PLAN]).run
            assert other.processes() == [before]


# The process that asks ------------------------------------------------------------------------

ASKING = """
import sys
from pathlib import Path
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.pool import Pool
from ml_trainer_env.server.runtime.runner import SliceRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.session import process
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.models import EpochPlan

plan = EpochPlan.model_validate_json(sys.argv[1])
pool = Pool(2)
runner = SliceRunner(pool, Cores(2, 2), States(10**9))
run = process.begin(runner.engine(), TASKS["easy_mnist"], 0)
pool.prepare(["mnist"])
for trained in runner.train(run, [plan] * 2):
    run = run.after(trained.record)
    print(trained.record.model_dump_json())
print(runner.test_accuracy(run))
print("torch" in sys.modules, "libtorch" in Path("/proc/self/maps").read_text())
pool.close()
"""


def test_it_loads_no_torch_and_a_worker_loads_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varied, "resident", resident)
    ended = subprocess.run(
        [sys.executable, "-c", ASKING, PLAN.model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
    )
    *told, accuracy, loaded = ended.stdout.splitlines()
    expected = advanced(begin("easy_mnist", 0), [PLAN] * 2)
    assert tuple(map(EpochRecord.model_validate_json, told)) == expected.run.history
    assert float(accuracy) == trainer.test_accuracy(expected)
    assert loaded == "False False"
    assert ended.stderr == ""


def test_no_descriptor_is_left_behind() -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    pools.load("mnist")  # of which the tests keep one open
    before = open_files()
    with closing(Pool(1, load=pools.load)) as pool:
        runner = over(pool)
        run = trained(runner, begin("easy_mnist", 0).run, [PLAN] * 2)
        runner.states.close()
        at_work = open_files()
        for number in range(5):
            branch: list[EpochPlan] = [plan(0.001 * number), PLAN]
            trained(runner, run, branch)
            runner.test_accuracy(run)
            with closing(runner.train(run, [PLAN] * 9)) as epochs:
                next(epochs)
        runner.states.close()
        assert open_files() == at_work
    assert open_files() == before
