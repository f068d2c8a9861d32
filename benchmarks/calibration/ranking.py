"""How often the return ranks a pair of runs otherwise than the score: `make ranking`.

Over whole runs that are on record: those of the calibration which have their validation losses, and
those of evaluations, whose histories are graded and rewarded anew under the tasks in force. Trains
nothing. The last line is JSON.

    make ranking ARGS='outputs/evals/evaluation'
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from ml_trainer_env.agents import records
from ml_trainer_env.agents.records import Called, Opened, Record
from ml_trainer_env.benchmarks.calibration.calibrate import recorded
from ml_trainer_env.models import EpochRecord
from ml_trainer_env.server import tasks
from ml_trainer_env.server.episode.rewards import DIVERGENCE_PENALTY, step_reward
from ml_trainer_env.server.tasks import TASKS, Task
from ml_trainer_env.task_ids import CLASSIC_IDS, TaskId
from ml_trainer_env.terminal import stdout

BOUNDS = (0.0, 0.005, 0.01, 0.02, 0.05, 1.0)  # of the difference of two scores


class Worth(NamedTuple):
    """What a run brought. Its charge for divergences is known, and told apart."""

    score: float
    returned: float  # without that charge


def worth(task: Task, history: Sequence[EpochRecord]) -> Worth:
    score = tasks.grade(task, history).score
    terms = step_reward([], history, task.loss_levels, score)
    return Worth(score, terms.total - terms.divergence)


def submitted(record: Record) -> list[EpochRecord]:
    """The epochs of the session that was submitted, its parents' included."""
    histories: list[list[EpochRecord]] = []
    for line in record.lines:
        if isinstance(line, Opened):
            histories.append([] if line.fork_of is None else list(histories[line.fork_of]))
        elif isinstance(line, Called):
            histories[line.session] += [report.record for report in line.epochs]
    return histories[record.end.session]


def runs(task_id: TaskId, folders: Sequence[Path]) -> Iterator[list[EpochRecord]]:
    yield from (run.history for run in recorded(task_id) if run.val_loss)
    for folder in folders:
        for path in records.find(folder):
            record = records.read(path)
            if record.header.task_id == task_id:
                yield submitted(record)


def disagreements(found: Sequence[Worth]) -> list[dict[str, Any]]:
    """For each range of the difference of the scores: pairs, and those ranked otherwise."""
    table: list[dict[str, Any]] = []
    pairs = [(abs(a.score - b.score), a, b) for a, b in combinations(found, 2)]
    for low, high in pairwise(BOUNDS):
        within = [(apart, a, b) for apart, a, b in pairs if low < apart <= high]
        otherwise = [
            (apart, abs(a.returned - b.returned))
            for apart, a, b in within
            if (a.score - b.score) * (a.returned - b.returned) < 0
        ]
        table.append(
            {
                "scores_apart": [low, high],
                "pairs": len(within),
                "ranked_otherwise": len(otherwise),
                "worst_score_difference": max((apart for apart, _ in otherwise), default=0.0),
                "worst_return_difference": max((lost for _, lost in otherwise), default=0.0),
            }
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make ranking", description="Return against score.")
    parser.add_argument("folders", nargs="*", type=Path, help="of records")
    options = parser.parse_args(argv)
    results: dict[str, Any] = {}
    table = Table(title=f"Pairs of runs; divergences, {DIVERGENCE_PENALTY:g} each, apart")
    for heading in ("task", "runs", "scores apart", "pairs", "ranked otherwise", "by at most"):
        table.add_column(heading)
    for task_id in CLASSIC_IDS:
        found = [worth(TASKS[task_id], history) for history in runs(task_id, options.folders)]
        results[task_id] = disagreements(found)
        for row in results[task_id]:
            low, high = row["scores_apart"]
            table.add_row(
                task_id,
                str(len(found)),
                f"{low:g} to {high:g}",
                str(row["pairs"]),
                str(row["ranked_otherwise"]),
                f"{row['worst_return_difference']:.4f}",
            )
    stdout(120).print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
