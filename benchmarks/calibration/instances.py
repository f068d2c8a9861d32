"""What an episode of an instance costs on one core: `make bench-instances`.

Whole episodes, from reset to grade: a recipe of the pool on instances of `eval`, and twenty
epochs of the easy task in between, to compare with. Measure alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

from rich.table import Table

from ml_trainer_env.agents.pool import POOL
from ml_trainer_env.benchmarks.calibration.freeze import play
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.task_ids import VARIED, instances
from ml_trainer_env.terminal import stdout

TARGETS = {"varied_mlp": 1.5, "varied_cnn": 15.0}  # seconds
RECIPE = 9  # in the middle, with augmentation
EASY_EPOCHS = 20
SEED = 4_000_000_000  # that nothing else plays, so nothing is shared


def measure(count: int) -> dict[str, list[float]]:
    """Seconds of `count` episodes of each family, and of as many of the easy task, in turn."""
    found: dict[str, list[float]] = {family: [] for family in (*VARIED, "easy_mnist")}
    easy = task_of("easy_mnist")
    _seconds(lambda: _episode(easy, SEED - 1))  # to warm up
    for number in range(count):
        for family in VARIED:
            task = task_of(str(instances(family, "eval")[number]))
            found[family].append(_seconds(lambda task=task: _episode(task, SEED)))
        seed = SEED + number
        found["easy_mnist"].append(_seconds(lambda seed=seed: _episode(easy, seed)))
    return found


def _episode(task: Task, seed: int) -> object:
    return play(task, POOL[RECIPE], seed, at_most=EASY_EPOCHS if task.max_epochs > 60 else None)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=24, help="episodes of each family")
    found = measure(parser.parse_args().count)
    table = Table("episode", "median", "10% to 90%", "longest", "of an easy one", "target")
    results: dict[str, Any] = {}
    usual = median(found["easy_mnist"])
    for name, seconds in found.items():
        tenths = quantiles(seconds, n=10)
        target = TARGETS.get(name)
        results[name] = {
            "median_s": round(median(seconds), 3),
            "p10_s": round(tenths[0], 3),
            "p90_s": round(tenths[-1], 3),
            "longest_s": round(max(seconds), 3),
            "of_easy": round(median(seconds) / usual, 3),
        }
        table.add_row(
            name,
            f"{median(seconds):.2f} s",
            f"{tenths[0]:.2f} to {tenths[-1]:.2f} s",
            f"{max(seconds):.2f} s",
            f"{median(seconds) / usual:.2f}",
            f"{target:g} s" if target else "",
        )
    stdout().print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
