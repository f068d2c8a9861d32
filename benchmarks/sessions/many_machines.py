"""Two Ray nodes of one core each against the pool on the same two cores. `make bench-ray`.

Epochs a second of a crowd of sessions, each with a seed of its own, the two alternating; and what
an order costs beside the training: nothing to train, one epoch by the worker that has the state,
and by one that has to fetch it. Alone on the machine, about 10 minutes; the last line is JSON.

    make bench-ray ARGS='--quick --tasks easy_mnist'
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.table import Table

from ml_trainer_env.benchmarks.sessions.crowd import CONFIGURE, Crowd
from ml_trainer_env.benchmarks.sessions.crowd import run as epochs_move
from ml_trainer_env.benchmarks.sessions.ray_nodes import farm, nodes, store_for
from ml_trainer_env.benchmarks.sessions.sessions import (
    CORES,
    fresh,
    judged,
    ratios,
    spread,
    workers,
)
from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import runs
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.orders import Order
from ml_trainer_env.server.runtime.pool import Pool
from ml_trainer_env.server.runtime.ray.farm import Farm
from ml_trainer_env.server.runtime.runner import Executor, Runner, SliceRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.task_ids import TaskId
from ml_trainer_env.terminal import stdout

SESSIONS = 8
BUDGET = 2**30  # bytes of states
INSTANCE = "varied_cnn/validation/0"
TARGETS: dict[TaskId, float] = {"easy_mnist": 0.85, "hard_cifar": 0.95, INSTANCE: 0.95}
EPOCHS: dict[TaskId, int] = {"easy_mnist": 20, "hard_cifar": 2, INSTANCE: 4}  # of each call
CALLS: dict[TaskId, int] = {"easy_mnist": 3, "hard_cifar": 1, INSTANCE: 1}
PLAN = EpochPlan(
    optimizer="adam",
    learning_rate=0.001,
    batch_size=64,
    weight_decay=0.0,
    dropout=0.0,
    augmentation=0.0,
)
PATIENCE = 120.0  # seconds that the nodes get


class Both(NamedTuple):
    """What is compared; both are there all the time, and one of them idle."""

    pool: Pool
    farm: Farm
    on_pool: Runner
    on_ray: Runner


@contextmanager
def both() -> Iterator[Both]:
    """Warm, on as many cores each."""
    with (
        workers() as pool,
        nodes(*[1] * CORES, store=store_for(BUDGET, CORES)) as cluster,
        farm(cluster.address, budget=BUDGET) as ours,
    ):
        ours.engine()
        deadline = time.monotonic() + PATIENCE
        while ours.cores.total < CORES and time.monotonic() < deadline:
            time.sleep(0.1)
        # Nobody is lent two cores, on neither side: a node has one.
        yield Both(pool, ours, SliceRunner(pool, Cores(1, CORES), States(BUDGET)), ours.runner)


def rate(runner: Runner, task_id: TaskId, epochs: int, calls: int) -> float:
    """Epochs a second of a crowd."""
    crowd = Crowd(runner, task_id, fresh(SESSIONS))
    crowd.play([[CONFIGURE]] * SESSIONS)
    seconds = crowd.play([[epochs_move(epochs)] * calls] * SESSIONS)
    crowd.close()
    return SESSIONS * epochs * calls / seconds


def throughput(of: Both, task_id: TaskId, repetitions: int) -> dict[str, Any]:
    """Of both, one after the other, and then the other way round."""
    rates: dict[str, list[float]] = {"pool": [], "ray": []}
    sides = {"pool": of.on_pool, "ray": of.on_ray}
    for runner in sides.values():
        rate(runner, task_id, 1, 1)  # warm
    for repetition in range(repetitions):
        names = ["pool", "ray"] if repetition % 2 == 0 else ["ray", "pool"]
        for name in names:
            rates[name].append(rate(sides[name], task_id, EPOCHS[task_id], CALLS[task_id]))
    return {
        "epochs_per_second": {name: spread(values) for name, values in rates.items()},
        "ray_over_pool": judged(ratios(rates["ray"], rates["pool"]), TARGETS[task_id]),
    }


def overhead(executor: Executor, states: Any, task_id: TaskId, repetitions: int) -> dict[str, Any]:
    """Milliseconds of an order beside its training."""
    begun = runs.begin(task_of(task_id).workload, fresh(1)[0], executor.engine())
    taken: dict[str, list[float]] = {"nothing": [], "held": [], "fetched": []}
    for _ in range(repetitions):
        key = _carried_out(executor, states, begun, None, 1)[1]
        taken["nothing"].append(_carried_out(executor, states, begun, key, 0)[0])
        taken["held"].append(_carried_out(executor, states, begun, key, 1)[0])
        # Whoever has it is busy, so another fetches it.
        with executor.perform(_order(begun, key, 0), _descriptor(states, key)) as answers:
            taken["fetched"].append(_carried_out(executor, states, begun, key, 1)[0])
            while not next(answers).answer.last:
                pass
    return {name: spread(values) for name, values in taken.items()}


def _order(begun: runs.Run, key: str | None, epochs: int) -> Order:
    return Order(
        workload=begun.workload,
        seed=begun.seed,
        precision=begun.precision,
        state=key,
        plans=(PLAN,) * epochs,
    )


def _carried_out(
    executor: Executor, states: Any, begun: runs.Run, key: str | None, epochs: int
) -> tuple[float, str | None]:
    """Milliseconds beside the training, and the key that was reached."""
    descriptor = None if key is None else _descriptor(states, key)
    start, trained = time.perf_counter(), 0.0
    with executor.perform(_order(begun, key, epochs), descriptor) as answers:
        while True:
            answer, file, _ = next(answers)
            trained += answer.seconds
            if answer.last:
                break
    took = 1000 * (time.perf_counter() - start - trained)
    if answer.key is not None and answer.size is not None:
        states.put(answer.key, answer.size, file)
    return took, answer.key


def _descriptor(states: Any, key: str | None) -> int | None:
    return states.open(key) if isinstance(states, States) and key is not None else None


def measure(task_ids: Sequence[TaskId], quick: bool) -> dict[str, Any]:
    results: dict[str, Any] = {"quick": quick, "throughput": {}, "order_ms": {}}
    with both() as of:
        for task_id in task_ids:
            repetitions = 1 if quick else 5
            results["throughput"][task_id] = throughput(of, task_id, repetitions)
        for task_id in task_ids:
            results["order_ms"][task_id] = {
                "pool": overhead(of.pool, States(BUDGET), task_id, 5 if quick else 12),
                "ray": overhead(of.farm, of.farm.states, task_id, 5 if quick else 12),
            }
    return results


def show(results: dict[str, Any]) -> None:
    console = stdout(120, markup=True)
    table = Table("task", "pool, epochs/s", "Ray, epochs/s", "Ray / pool", "from, to", "target")
    for task_id, each in results["throughput"].items():
        rates, ratio = each["epochs_per_second"], each["ray_over_pool"]
        table.add_row(
            task_id,
            *(f"{rates[name]['median']:.3g}" for name in ("pool", "ray")),
            f"{ratio['value']:.3f}",
            f"{ratio['spread']['minimum']:.3f}, {ratio['spread']['maximum']:.3f}",
            f"{ratio['target']}",
        )
    console.print(table)
    table = Table("ms of an order beside training", "nothing to train", "held", "fetched")
    for task_id, sides in results["order_ms"].items():
        for side, found in sides.items():
            row = (f"{found[name]['median']:.1f}" for name in ("nothing", "held", "fetched"))
            table.add_row(f"{task_id}, {side}", *row)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make bench-ray", description="Two nodes and the pool.")
    parser.add_argument("--quick", action="store_true", help="each figure once")
    parser.add_argument("--tasks", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    options = parser.parse_args(argv)
    results = measure(options.tasks, options.quick)
    show(results)
    print(json.dumps(results, allow_nan=False))


if __name__ == "__main__":
    main()
