"""A large machine, simulated: what one server process feeds. `make bench-machine`.

The real server with its real doors and runtime, 512 clients over WebSockets, and 16, 64 or 256
workers that wait the measured time of an epoch instead of computing. They speak the workers'
protocol; all of them are one process, so that they leave this machine's cores to the server. What
is printed is epochs a second as a share of the ideal, workers over seconds of an epoch, and the
server's processor time for each epoch. Alone on the machine; the last line is JSON.

    make bench-machine ARGS='--workers 64 --seconds 20'
    make bench-machine ARGS='--ray --workers 256'    # each worker is a Ray actor, a process
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any, NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from ml_trainer_env.benchmarks.sessions.crowd import CONFIGURE, Side
from ml_trainer_env.benchmarks.sessions.waiting import ENGINE
from ml_trainer_env.benchmarks.sessions.watcher import processor_seconds, server_of
from ml_trainer_env.client import MLTrainerEnv
from ml_trainer_env.local_server import LOGS, local_server
from ml_trainer_env.server.runs import Engine
from ml_trainer_env.server.runtime.ray.nodes import label
from ml_trainer_env.surroundings import variables_set
from ml_trainer_env.task_ids import TaskId
from ml_trainer_env.terminal import stdout

LOG = LOGS / "bench-machine-server.log"
PROGRAM = (sys.executable, "-m", "ml_trainer_env.benchmarks.sessions.farm_server")
SESSIONS = 512
WORKERS = (16, 64, 256)
EPOCHS: dict[TaskId, int] = {"easy_mnist": 20, "hard_cifar": 3}  # of each call
TARGETS: dict[TaskId, float] = {"easy_mnist": 0.90, "hard_cifar": 0.95}  # at JUDGED workers
JUDGED = 64
AT_ONCE = 16  # clients that are opening sessions
START_SECONDS = 900.0  # hundreds of actors are hundreds of processes
WARM_UP = 0.5  # share of the measured time, before it


class Mark(NamedTuple):
    """What a server has done up to a moment."""

    when: float
    processor: float  # seconds
    epochs: int


def mark(url: str) -> Mark:
    """By its own count: a call of many epochs may last longer than what is measured."""
    text, now = httpx.get(f"{url}/metrics", timeout=60).text, time.monotonic()
    (family,) = (
        each for each in text_string_to_metric_families(text) if each.name == "ml_trainer_epochs"
    )
    epochs = round(sum(each.value for each in family.samples))
    return Mark(now, processor_seconds(server_of(url)), epochs)


def seconds_of_an_epoch(task_id: TaskId) -> float:
    """Of the engine on one thread, beside as many others as there are cores."""
    count, epochs = os.cpu_count() or 1, {"easy_mnist": 20, "hard_cifar": 2}[task_id]
    with Side("engine", task_id, range(count)) as plain:
        return statistics.median(plain.train(epochs) / epochs for _ in range(5))


@contextmanager
def machine(workers: int, epoch_seconds: float, ray: bool) -> Iterator[str]:
    """The server of a machine with that many cores, or of a Ray cluster with them; its URL."""
    variables = {
        "ML_TRAINER_MAX_SESSIONS": str(2 * SESSIONS),
        "FARM_WORKERS": str(workers),
        "FARM_EPOCH_SECONDS": str(epoch_seconds),
    }
    with ExitStack() as opened:
        opened.enter_context(variables_set(variables))
        if ray:
            from ml_trainer_env.benchmarks.sessions.ray_nodes import nodes

            cluster = nodes(workers, engine=label(Engine(**ENGINE)))
            address = {"ML_TRAINER_RAY_ADDRESS": opened.enter_context(cluster).address}
            opened.enter_context(variables_set(address))
        yield opened.enter_context(local_server(LOG, PROGRAM, patience=START_SECONDS))


async def played(url: str, task_id: TaskId, seconds: float) -> tuple[float, float]:
    """Epochs a second over `seconds`, and the server's processor time for each."""
    async with AsyncExitStack() as opened:
        gate = asyncio.Semaphore(AT_ONCE)
        everybody_is_there = asyncio.Event()
        ready = itertools.count(1)

        async def client(seed: int, until: list[float]) -> None:
            async with gate:
                env = await opened.enter_async_context(MLTrainerEnv(base_url=url))
                await begin(env, seed)
            if next(ready) == SESSIONS:
                now = time.monotonic()
                until[:] = [now + WARM_UP * seconds, now + (1 + WARM_UP) * seconds]
                everybody_is_there.set()
            await everybody_is_there.wait()
            epochs = 1 + seed % EPOCHS[task_id]  # so that they do not stay in step
            while time.monotonic() < until[1]:
                status = await env.call_tool("run_epochs", num_epochs=epochs)
                epochs = EPOCHS[task_id]
                if not status.remaining_budget:
                    await begin(env, seed := seed + SESSIONS)

        async def begin(env: MLTrainerEnv, seed: int) -> None:
            await env.reset(task_id=task_id, seed=seed)
            tool, arguments = CONFIGURE
            await env.call_tool(tool, **arguments)

        async def measured() -> list[Mark]:
            await everybody_is_there.wait()
            marks: list[Mark] = []
            for when in until:
                await asyncio.sleep(max(0.0, when - time.monotonic()))
                marks.append(await asyncio.to_thread(mark, url))
            return marks

        until: list[float] = []
        async with asyncio.TaskGroup() as crowd:  # one that fails ends them all
            for seed in range(SESSIONS):
                crowd.create_task(client(seed, until))
            marks = crowd.create_task(measured())
        first, last = marks.result()
    epochs = last.epochs - first.epochs
    cost = 1000 * (last.processor - first.processor) / epochs
    return epochs / (last.when - first.when), cost


def measure(
    workers: Sequence[int], task_ids: Sequence[TaskId], seconds: float, ray: bool
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for task_id in task_ids:
        epoch_seconds = seconds_of_an_epoch(task_id)
        for count in workers:
            with machine(count, epoch_seconds, ray) as url:
                rate, cost = asyncio.run(played(url, task_id, seconds))
            ideal = count / epoch_seconds
            results[f"{task_id}, {count} workers"] = {
                "epoch_seconds": epoch_seconds,
                "epochs_per_second": rate,
                "share_of_ideal": rate / ideal,
                "target": TARGETS[task_id] if count == JUDGED else None,
                "server_ms_an_epoch": cost,
            }
    return results


def show(results: dict[str, Any]) -> None:
    table = Table("machine", "s/epoch", "epochs/s", "share of ideal", "target", "server ms/epoch")
    for name, each in results.items():
        table.add_row(
            name,
            f"{each['epoch_seconds']:.3g}",
            f"{each['epochs_per_second']:.4g}",
            f"{each['share_of_ideal']:.2f}",
            f"{each['target'] or '':}",
            f"{each['server_ms_an_epoch']:.2f}",
        )
    stdout(120, markup=True).print(table)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make bench-machine", description="A large machine.")
    parser.add_argument("--workers", nargs="+", type=int, default=list(WORKERS))
    parser.add_argument("--tasks", nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--seconds", type=float, default=30.0, help="that are measured, of each")
    parser.add_argument("--ray", action="store_true", help="workers as actors of a Ray cluster")
    options = parser.parse_args(argv)
    results = measure(options.workers, options.tasks, options.seconds, options.ray)
    show(results)
    print(json.dumps(results, allow_nan=False))


if __name__ == "__main__":
    main()
