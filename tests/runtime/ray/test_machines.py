"""Many machines: several nodes as processes; whatever ends, every bit is that of the run alone."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from executors import plan
from live import eventually
from pools import trained

pytest.importorskip("ray", reason="the extra `ray`")

import mortal

from ml_trainer_env.benchmarks.sessions import ray_nodes as rays
from ml_trainer_env.server import runs
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.runtime.asking import Asker
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.inline import Inline
from ml_trainer_env.server.runtime.ray.farm import Farm
from ml_trainer_env.server.runtime.runner import Runner, SliceRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.tasks import TASKS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]
TASK = TASKS["easy_mnist"]
PLANS = [plan(0.003), plan(0.01), *[plan(0.003)] * 4]
MANY = [plan(0.001)] * 24  # enough that something can happen in the middle


@pytest.fixture(scope="module")
def alone() -> Runner:
    """One process, one core, nobody else."""
    return SliceRunner(Inline(), Cores(1, 1), States(10**9))


@pytest.fixture(scope="module")
def two() -> Iterator[rays.Nodes]:
    with rays.nodes(1, 1) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def farm(two: rays.Nodes) -> Iterator[Farm]:
    with rays.farm(two.address) as farm:
        farm.engine()
        eventually(lambda: farm.cores.total == 2, rays.PATIENCE)
        yield farm


def begin(runner: Runner, seed: int = 3) -> Run:
    return runs.begin(TASK.workload, seed, runner.engine())


def test_two_nodes_give_the_bits_of_the_run_alone(farm: Farm, alone: Runner) -> None:
    def played(runner: Runner, seed: int) -> tuple[Run, float]:
        run = trained(runner, begin(runner, seed), PLANS)
        return run, runner.test_accuracy(run)

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda seed: played(farm.runner, seed), range(4)))
    assert together == [played(alone, seed) for seed in range(4)]


def test_the_server_loads_neither_ray_nor_torch() -> None:
    program = "import sys, ml_trainer_env.server.runtime.ray.farm as _; print(*sys.modules)"
    with os.popen(f'{sys.executable} -c "{program}"') as out:
        assert not {"ray", "torch"} & {*out.read().split()}


def test_nobody_listens_any_more(farm: Farm) -> None:
    gone: list[bool] = []
    asker = Asker(gone=lambda: bool(gone))
    epochs = farm.runner.train(begin(farm.runner, 7), MANY, asker)
    next(epochs)
    gone.append(True)
    assert len(list(epochs)) < len(MANY) - 2
    with closing(farm.runner.train(begin(farm.runner, 8), MANY)) as epochs:
        assert len(list(islice(epochs, 3))) == 3
    eventually(lambda: not farm.pool._busy, rays.PATIENCE)


def test_an_actor_is_killed(two: rays.Nodes, farm: Farm, alone: Runner) -> None:
    """Both of them are, while one has an order: it costs its slice."""
    run = begin(farm.runner, 11)
    epochs = farm.runner.train(run, MANY)
    for _ in range(3):
        run = run.after(next(epochs).record)
    for node in two.cluster.list_all_nodes():
        for actor in rays.actors_of(node):
            os.kill(actor, signal.SIGKILL)
    for each in epochs:
        run = run.after(each.record)
    assert run == trained(alone, begin(alone, 11), MANY)


def test_a_state_is_gone_though_it_was_kept(
    farm: Farm, alone: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    """Its actor is, too: it is trained again from the start."""
    run = trained(farm.runner, begin(farm.runner, 12), PLANS)
    keys = run.keys()
    farm.machines.forget(keys)
    for worker in farm.pool.processes():
        worker.kill()
        worker.wait(rays.PATIENCE)
    assert trained(farm.runner, run, PLANS) == trained(alone, begin(alone, 12), [*PLANS, *PLANS])
    assert "damaged or gone" in caplog.text


def test_an_actor_ends_before_the_state_that_it_told_of_is_stored(
    alone: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doom = tmp_path / "doom"
    monkeypatch.setenv("MORTAL", str(doom))
    monkeypatch.setenv("PYTHONPATH", str(Path(mortal.__file__).parent), prepend=os.pathsep)
    with rays.nodes(1) as nodes, rays.farm(nodes.address, bridge="mortal") as farm:
        run = trained(farm.runner, begin(farm.runner, 14), PLANS)
        doom.touch()
        run = trained(farm.runner, run, PLANS)
        assert not doom.exists()
        run = trained(farm.runner, run, PLANS)
        assert run == trained(alone, begin(alone, 14), [*PLANS, *PLANS, *PLANS])
        assert farm.runner.test_accuracy(run) == alone.test_accuracy(run)


def test_a_state_stays_where_it_was_made(alone: Runner) -> None:
    """And does not pass through the machine of the server."""
    with rays.nodes(1) as nodes, rays.farm(nodes.address) as farm:
        run = begin(farm.runner, 15)
        for _ in range(4):
            run = trained(farm.runner, run, [plan(0.003)])
        used = farm.states.used
        eventually(lambda: used <= nodes.stored() < 1.5 * used, 10)
        assert run == trained(alone, begin(alone, 15), [plan(0.003)] * 4)


def test_what_speaks_to_ray_is_killed(farm: Farm, alone: Runner) -> None:
    run = begin(farm.runner, 13)
    epochs = farm.runner.train(run, MANY)
    for _ in range(3):
        run = run.after(next(epochs).record)
    bridge = farm.machines.bridge
    assert bridge is not None
    bridge.kill()
    for each in epochs:
        run = run.after(each.record)
    assert farm.machines.bridge is not bridge
    assert run == trained(alone, begin(alone, 13), MANY)


def test_a_node_is_killed_and_its_states_with_it(alone: Runner) -> None:
    with rays.nodes(1) as nodes, rays.farm(nodes.address) as farm:
        run = begin(farm.runner, 21)
        epochs = farm.runner.train(run, MANY)
        for _ in range(3):
            run = run.after(next(epochs).record)
        (first,) = nodes.cluster.worker_nodes
        nodes.kill(first)
        nodes.add()
        for each in epochs:
            run = run.after(each.record)
        assert run == trained(alone, begin(alone, 21), MANY)


def test_a_run_keeps_its_engine_when_what_speaks_to_ray_starts_again(alone: Runner) -> None:
    """Though most cores have another by then."""
    with rays.nodes(1) as nodes, rays.farm(nodes.address) as farm:
        run = trained(farm.runner, begin(farm.runner, 22), PLANS)
        nodes.add(4, named="ml-trainer-engine-0123456789abcdef")
        bridge = farm.machines.bridge
        assert bridge is not None
        bridge.kill()
        eventually(lambda: farm.cores.total == 0, rays.PATIENCE)
        eventually(lambda: farm.cores.total, rays.PATIENCE)
        assert farm.cores.total == 1
        again = trained(farm.runner, run, PLANS)
        assert again == trained(alone, begin(alone, 22), [*PLANS, *PLANS])


def test_a_node_joins_late() -> None:
    with rays.nodes(1) as nodes, rays.farm(nodes.address) as farm:
        farm.engine()
        assert farm.cores.total == 1
        nodes.add(2)
        eventually(lambda: farm.cores.total == 3, rays.PATIENCE)
        eventually(lambda: sum(map(len, map(rays.actors_of, nodes.cluster.worker_nodes))) == 3, 60)
    with rays.nodes() as nodes, rays.farm(nodes.address, cores=2) as farm:
        nodes.add(3)
        farm.engine()
        assert farm.cores.total == 2  # as many as it may


def test_a_node_of_another_engine_is_never_used(
    alone: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither one that says so, nor one that says it has ours: it is found out."""
    with rays.nodes(1) as nodes, rays.farm(nodes.address) as farm:
        run = begin(farm.runner, 31)
        other = nodes.add(2, named="ml-trainer-engine-0123456789abcdef")
        liar = nodes.add(2, environment={"ONEDNN_MAX_CPU_ISA": "AVX2"})
        eventually(lambda: "it is not used" in caplog.text, rays.PATIENCE)
        eventually(lambda: farm.cores.total == 1, rays.PATIENCE)
        with ThreadPoolExecutor(4) as threads:
            runs_of = list(threads.map(lambda _: trained(farm.runner, run, PLANS), range(4)))
        assert runs_of == [trained(alone, begin(alone, 31), PLANS)] * 4
        assert not rays.actors_of(other)
        eventually(lambda: not rays.actors_of(liar), rays.PATIENCE)


def test_the_head_is_restarted(alone: Runner) -> None:
    """All nodes end with it; others come to the new one, and training goes on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with closing(rays.Nodes(port)) as first:
        first.add()
        with rays.farm(first.address) as farm:
            run = begin(farm.runner, 41)
            epochs = farm.runner.train(run, MANY)
            for _ in range(3):
                run = run.after(next(epochs).record)
            first.close()
            eventually(lambda: farm.cores.total == 0, rays.PATIENCE)
            with rays.nodes(1, port=port):
                for each in epochs:
                    run = run.after(each.record)
                assert run == trained(alone, begin(alone, 41), MANY)
