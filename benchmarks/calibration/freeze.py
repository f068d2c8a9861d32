"""Measure the scales of a family: `make freeze ARGS=varied_mlp`.

On every instance the pool of recipes is played, seed 0; then the best three with two seeds more.
low is the median of the pool's hidden-test accuracies, high the mean of those nine runs. Where high
is less than `LEAST_RANGE` above low, or the winner deviates by more than `MOST_DEVIATION` over its
seeds, the candidate is no task: the next one is drawn. Each instance is a line of
`frozen/FAMILY.jsonl` as soon as it is measured; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import correlation, fmean, median, stdev
from typing import Any, NamedTuple

from rich.table import Table

from ml_trainer_env import frozen
from ml_trainer_env.agents.moves import SUBMIT
from ml_trainer_env.agents.pool import POOL, playing
from ml_trainer_env.frozen import Measured
from ml_trainer_env.models import Grade, TrainingConfig
from ml_trainer_env.server import families, instances, runs
from ml_trainer_env.server.episode import situation, tools
from ml_trainer_env.server.episode.situation import Situation
from ml_trainer_env.server.episode.tools import begun
from ml_trainer_env.server.runs import Scale
from ml_trainer_env.server.runtime.asking import Asker
from ml_trainer_env.server.runtime.runner import Runner
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.task_ids import (
    SPLITS,
    VARIED,
    Family,
    InstanceId,
)
from ml_trainer_env.task_ids import instances as all_instances
from ml_trainer_env.terminal import stdout

LEAST_RANGE = 0.08
MOST_DEVIATION = 0.02
MOST_CANDIDATES = 20
BEST, SEEDS = 3, 3
EVERYTHING = Scale(0.0, 1.0)  # until there is one, the score is the accuracy


class Played(NamedTuple):
    """What came of a recipe."""

    test: float | None  # hidden-test accuracy of the checkpoint that is best on validation
    val: tuple[float | None, ...]  # accuracy after each epoch


@cache
def _runner() -> Runner:
    """Of this process, which computes on one core."""
    import torch

    from ml_trainer_env.server import trainer
    from ml_trainer_env.server.session import process

    torch.set_num_threads(1)
    trainer.configure_process()
    return process.inline_runner()


def play(task: Task, recipe: TrainingConfig, seed: int, at_most: int | None = None) -> Played:
    """The recipe to the end of the budget, or for `at_most` epochs."""
    runner = _runner()
    untrained = Situation(runs.begin(task.workload, seed, runner.engine()))
    episode = begun(task, situation.first(task, untrained, runner, Asker()), runner)
    policy = playing(recipe)
    while not episode.done:
        status = episode.get_training_status()
        enough = at_most is not None and status.current_epoch >= at_most
        tool, arguments = SUBMIT if enough else policy(status)
        tools.call(episode, tool, arguments)
    grade = episode.now.grade
    assert isinstance(grade, Grade)
    history = episode.now.training.history
    return Played(grade.hidden_test_accuracy, tuple(record.val_accuracy for record in history))


def measured(of: InstanceId) -> Measured:
    """The first candidate that is a task, with its scale. Raises `RuntimeError` without one."""
    for number, found in enumerate(islice(families.candidates(of), MOST_CANDIDATES)):
        line = _measured(of, number, instances.made(of, found, EVERYTHING))
        if line.high - line.low >= LEAST_RANGE and line.deviation <= MOST_DEVIATION:
            return line
    raise RuntimeError(f"{of}: none of {MOST_CANDIDATES} candidates is a task")


def _reach(tests: Sequence[float], best: Sequence[int]) -> bool:
    """Whether one seed leaves it open that the range is wide enough."""
    return fmean(tests[n] for n in best) - median(tests) >= LEAST_RANGE


def _measured(of: InstanceId, number: int, task: Task) -> Measured:
    played = [play(task, recipe, 0) for recipe in POOL]
    tests = [each.test or 0.0 for each in played]
    best = sorted(range(len(POOL)), key=lambda n: -tests[n])[:BEST]
    seeds = range(1, SEEDS) if _reach(tests, best) else ()  # one that is no task needs no more
    again = {
        n: [tests[n]] + [play(task, POOL[n], seed).test or 0.0 for seed in seeds] for n in best
    }
    winner = max(best, key=lambda n: fmean(again[n]))
    return Measured(
        split=of.split,
        index=of.index,
        candidate=number,
        low=round(median(tests), 5),
        high=round(fmean(test for tests in again.values() for test in tests), 5),
        deviation=round(stdev(again[winner]), 5) if seeds else 0.0,
        winner=winner,
        test=tuple(each.test for each in played),
        val=tuple(
            tuple(None if acc is None else round(1000 * acc) for acc in each.val) for each in played
        ),
    )


def freeze(family: Family, splits: list[str], processes: int, most: int | None) -> None:
    """Measure what has no line yet."""
    file = frozen.file_of(family)
    wanted = [
        of
        for split in SPLITS[::-1]
        if split in splits
        for of in all_instances(family, split)
        if frozen.measured(of) is None
    ][:most]
    began = time.time()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        work = [pool.submit(measured, of) for of in wanted]
        for number, done in enumerate(as_completed(work), 1):
            line = done.result()
            with file.open("a", encoding="utf-8") as out:
                out.write(line.model_dump_json() + "\n")
            shown = line.model_dump(exclude={"val", "test"})
            print(number, len(wanted), round(time.time() - began), shown, flush=True)
    _sort(file)
    print(json.dumps({"family": family, "measured": len(wanted), "s": time.time() - began}))


def report(family: Family) -> None:
    """What the frozen runs say of the family: how each recipe does, and how validation does."""
    table = Table(
        "split", "instances", "high - low", "candidates drawn", "best recipe, in hindsight"
    )
    results: dict[str, Any] = {"family": family}
    lines = list(frozen.table(family).values())
    for split in SPLITS:
        of = [line for line in lines if line.split == split]
        if not of:
            continue
        means = [fmean(_score(line, n) for line in of) for n in range(len(POOL))]
        best = max(range(len(POOL)), key=means.__getitem__)
        ranges = [line.high - line.low for line in of]
        drawn = fmean(line.candidate + 1 for line in of)
        told = f"{means[best]:.2f}, rate {POOL[best].learning_rate:g}"
        spread = f"{fmean(ranges):.2f} ({min(ranges):.2f} to {max(ranges):.2f})"
        table.add_row(split, str(len(of)), spread, f"{drawn:.2f}", told)
        results[split] = {"instances": len(of), "means": [round(mean, 3) for mean in means]}
    correlations = [_correlation(line) for line in lines]
    results["correlation_median"] = round(median(correlations), 4)
    results["correlation_least"] = round(min(correlations), 4)
    results["winners"] = len({line.winner for line in lines})
    stdout().print(table)
    print(json.dumps(results))


def _score(line: Measured, recipe: int) -> float:
    return Scale(line.low, line.high).accuracy(line.test[recipe] or 0.0)


def _correlation(line: Measured) -> float:
    """Of best validation and hidden-test accuracy over the recipes of an instance."""
    val = [max((v for v in curve if v is not None), default=0) / 1000 for curve in line.val]
    return correlation(val, [test or 0.0 for test in line.test])


def _sort(file: Path) -> None:
    """By split and index: the order of measuring is chance."""
    lines = [Measured.model_validate_json(text) for text in file.read_text().splitlines()]

    def place(line: Measured) -> tuple[str, int]:
        return line.split, line.index

    aside = file.with_suffix(".sorted")
    aside.write_text("".join(f"{line.model_dump_json()}\n" for line in sorted(lines, key=place)))
    aside.replace(file)  # so that whoever reads or interrupts finds it whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=VARIED)
    parser.add_argument("--splits", default=",".join(SPLITS))
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--most", type=int, help="instances, then stop")
    parser.add_argument("--report", action="store_true", help="measure nothing, show what is there")
    options = parser.parse_args()
    if options.report:
        report(options.family)
        return 0
    freeze(options.family, options.splits.split(","), options.processes, options.most)
    return 0


if __name__ == "__main__":
    sys.exit(main())
