"""Calibration: the search for reference recipes, and the runs that the frozen scales rest on.

    make calibrate ARGS='search hard_cifar --trials 12'   # recipes drawn at random, one seed
    make calibrate ARGS='finals hard_cifar'               # the best recipes of it, three more seeds
    make calibrate ARGS='confirm hard_cifar'              # naive and reference, five seeds again
    make calibrate ARGS='again hard_cifar'                # runs on file that lack their val losses
    make calibrate ARGS='report'                          # grade what is recorded, train nothing

Every run is one line of `docs/calibration/TASK.jsonl`: who asked for it, its recipe and seed, and
what each epoch measured, so that a scale can be judged again without training. A run spends the
whole budget on one configuration. The search is random over `SPACES`, each trial a function of its
number, so that it can be repeated and continued. One seed flatters its winner, so the best few meet
in finals on other seeds. The reference recipe is the one with the best mean there, and what it is
worth is then measured on five seeds that did not choose it among the finalists. Runs that are on
file already are not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from ml_trainer_env.agents.scripted import RECIPES
from ml_trainer_env.models import (
    MAX_EPOCHS_PER_CALL,
    BatchSize,
    EpochPlan,
    EpochRecord,
    TrainingConfig,
)
from ml_trainer_env.server import tasks
from ml_trainer_env.server.episode.rewards import LEVELS
from ml_trainer_env.server.runtime.cores import available
from ml_trainer_env.server.tasks import TASKS, Task, best_checkpoint
from ml_trainer_env.task_ids import CLASSIC_IDS, TaskId
from ml_trainer_env.terminal import stdout

FOLDER = Path(__file__).parents[2] / "docs" / "calibration"
CHANCE = math.log(10)  # the loss of ten equal probabilities
SEARCH_SEED = 0  # of the training in the search; the draws of a trial come from its number
FINAL_SEEDS = range(5, 8)
SEEDS = range(5)  # of the runs that the scales rest on
NAIVE = TrainingConfig(optimizer="adam", learning_rate=0.001, batch_size=64)

STATES = 64 * 2**20  # bytes; the latest is all that a run needs

Stage = Literal["search", "final", "reference", "naive"]


class Job(NamedTuple):
    """A run to be trained."""

    task_id: TaskId
    stage: Stage
    seed: int
    recipe: TrainingConfig


class Run(BaseModel):
    """One run of the whole budget. The lists have one entry an epoch, null where it diverged."""

    model_config = ConfigDict(frozen=True)

    task_id: TaskId
    network: str  # its parameters in words; a run of another network says nothing about this one
    stage: Stage
    seed: int
    recipe: TrainingConfig
    val_accuracy: list[float | None]
    val_loss: list[float | None] = []  # empty in runs that were recorded before version 2
    clean_train_accuracy: list[float | None]
    clean_train_loss: list[float | None]
    hidden_test_accuracy: float

    @property
    def job(self) -> Job:
        return Job(self.task_id, self.stage, self.seed, self.recipe)

    @property
    def history(self) -> list[EpochRecord]:
        """As much of the epoch history as a grade reads."""
        plan = EpochPlan(
            optimizer=self.recipe.optimizer,
            learning_rate=self.recipe.learning_rate,
            batch_size=self.recipe.batch_size,
            weight_decay=self.recipe.weight_decay,
            dropout=self.recipe.dropout,
            augmentation=0.0,
        )
        measured = zip(
            self.val_accuracy,
            self.val_loss or self.clean_train_loss,  # grades ask only whether there is one
            self.clean_train_accuracy,
            self.clean_train_loss,
            strict=True,
        )
        return [
            EpochRecord(
                epoch=number,
                plan=plan,
                train_loss=loss,
                train_accuracy=clean,
                val_loss=val_loss,
                val_accuracy=val,
                clean_train_loss=loss,
                clean_train_accuracy=clean,
            )
            for number, (val, val_loss, clean, loss) in enumerate(measured, 1)
        ]


@dataclass(frozen=True, slots=True)
class Space:
    """What the search of a task draws from: adamw with `warmup_cosine`, and these ranges."""

    batch_sizes: tuple[BatchSize, ...]
    learning_rate: tuple[float, float]  # log-uniform
    weight_decay: tuple[float, float]  # log-uniform
    dropout: tuple[float, float]
    strength: tuple[float, float]  # of augmentation
    warmup: tuple[int, int] = (0, 8)  # epochs

    def draw(self, trial: int) -> TrainingConfig:
        """Recipe number `trial` of the search."""
        rng = np.random.default_rng(trial)

        def log_uniform(bounds: tuple[float, float]) -> float:
            low, high = map(math.log, bounds)
            return float(f"{math.exp(rng.uniform(low, high)):.2g}")

        return TrainingConfig(
            optimizer="adamw",
            batch_size=self.batch_sizes[int(rng.integers(len(self.batch_sizes)))],
            learning_rate=log_uniform(self.learning_rate),
            weight_decay=log_uniform(self.weight_decay),
            dropout=round(float(rng.uniform(*self.dropout)), 2),
            lr_schedule="warmup_cosine",
            warmup_epochs=int(rng.integers(*self.warmup, endpoint=True)),
            augmentation=True,
            augmentation_strength=round(float(rng.uniform(*self.strength)), 2),
        )


SPACES: dict[TaskId, Space] = {  # around what a first look at each network had shown
    "easy_mnist": Space((32, 64, 128), (0.001, 0.006), (0.01, 0.2), (0.1, 0.4), (0.2, 0.8)),
    "medium_fashion": Space((32, 64, 128), (0.001, 0.006), (0.02, 0.2), (0.2, 0.5), (0.2, 0.6)),
    "hard_cifar": Space((64, 128), (0.002, 0.006), (0.05, 0.2), (0.2, 0.4), (0.6, 1.0)),
}


def train(job: Job) -> Run:
    """One run, by the calls that an agent would make, on one thread."""
    from ml_trainer_env.server import runs, trainer
    from ml_trainer_env.server.episode.tools import begun
    from ml_trainer_env.server.runtime.cores import Cores
    from ml_trainer_env.server.runtime.inline import Inline
    from ml_trainer_env.server.runtime.runner import SliceRunner
    from ml_trainer_env.server.runtime.states import States

    task_id, stage, seed, recipe = job
    task = TASKS[task_id]
    trainer.configure_process()
    runner = SliceRunner(Inline(), Cores(threads=1), States(STATES))
    episode = begun(task, runs.begin(task.workload, seed, runner.engine()), runner)
    episode.configure_training(recipe.model_dump())
    while (left := task.max_epochs - episode.now.epoch) > 0:
        episode.run_epochs(min(left, MAX_EPOCHS_PER_CALL))
        if episode.now.is_diverged:
            episode.configure_training({})
    history = episode.now.training.history
    return Run(
        task_id=task_id,
        network=str(trainer.NETWORKS[task.workload.network]),
        stage=stage,
        seed=seed,
        recipe=recipe,
        val_accuracy=[r.val_accuracy for r in history],
        val_loss=[r.val_loss for r in history],
        clean_train_accuracy=[r.clean_train_accuracy for r in history],
        clean_train_loss=[r.clean_train_loss for r in history],
        hidden_test_accuracy=runner.test_accuracy(episode.now.training),
    )


def recorded(task_id: TaskId) -> list[Run]:
    """The runs on file."""
    path = FOLDER / f"{task_id}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Run.model_validate_json(line, strict=False) for line in lines]


def train_all(jobs: Sequence[Job], console: Console) -> None:
    """Train what is not on file, side by side, one process a core; record each run as it ends.

    A run without val losses counts as not on file, and gives way to the new one.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    done = {run.job for task_id in CLASSIC_IDS for run in recorded(task_id) if run.val_loss}
    jobs = [job for job in jobs if job not in done]
    context = multiprocessing.get_context("spawn")
    with context.Pool(available(), maxtasksperchild=1) as pool:
        for run in pool.imap_unordered(train, jobs):
            # In the place of the old one, if any: of equal runs the first is the better.
            runs = {each.job: each for each in recorded(run.task_id)} | {run.job: run}
            path = FOLDER / f"{run.task_id}.jsonl"
            text = "".join(f"{each.model_dump_json()}\n" for each in runs.values())
            path.with_suffix(".part").write_text(text, encoding="utf-8")
            path.with_suffix(".part").replace(path)
            console.print(summary(run), highlight=False)


def summary(run: Run) -> str:
    task = TASKS[run.task_id]
    best = best_checkpoint(task, run.history)
    if best is None or best.val_accuracy is None or best.gap is None:
        return f"{run.stage} seed {run.seed}: every epoch diverged"
    asked = ", ".join(f"{k} {v}" for k, v in run.recipe.model_dump(exclude_defaults=True).items())
    return (
        f"{run.stage} seed {run.seed}: val {best.val_accuracy:.4f} at {best.epoch}, gap "
        f"{best.gap:.3f}, score {score(task, run):.3f} ({asked or 'defaults'})"
    )


def score(task: Task, run: Run) -> float:
    return tasks.grade(task, run.history).score


def finalists(task_id: TaskId, count: int) -> list[TrainingConfig]:
    """The recipes of the best `count` runs of the search."""
    runs = [run for run in recorded(task_id) if run.stage == "search"]
    runs.sort(key=lambda run: score(TASKS[task_id], run), reverse=True)
    return [run.recipe for run in runs[:count]]


def winner(task_id: TaskId) -> TrainingConfig:
    """The recipe with the best mean score in the finals."""
    finals = [run for run in recorded(task_id) if run.stage == "final"]
    scores: dict[TrainingConfig, list[float]] = {}
    for run in finals:
        scores.setdefault(run.recipe, []).append(score(TASKS[task_id], run))
    return max(scores, key=lambda recipe: statistics.fmean(scores[recipe]))


def mean_best(run: Run) -> float:
    """The mean over the budget of the best val accuracy so far."""
    best, curve = 0.0, list[float]()
    for accuracy in run.val_accuracy:
        best = max(best, accuracy or 0.0)
        curve.append(best)
    return statistics.fmean(curve)


def loss_levels(task_id: TaskId) -> tuple[float, ...]:
    """Five val losses in equal ratios, from chance to what each naive run reaches, in nats."""
    naive = [run for run in recorded(task_id) if run.stage == "naive"]
    reached = max(min(loss for loss in run.val_loss if loss is not None) for run in naive)
    lowest = math.ceil(100 * reached) / 100
    ratio = (lowest / CHANCE) ** (1 / LEVELS)
    return (*(round(CHANCE * ratio**n, 2) for n in range(1, LEVELS)), lowest)


def report(task_ids: Iterable[TaskId], console: Console) -> dict[str, Any]:
    """Show each task's runs under the scales in force; what a test and the docs rest on."""
    results: dict[str, Any] = {}
    for task_id in task_ids:
        task, runs = TASKS[task_id], recorded(task_id)
        table = Table(title=f"{task_id}: scale {task.scale.low:g} to {task.scale.high:g}")
        headings = ("run", "n", "val", "gap", "mean best", "utility", "score", "hidden test")
        for heading in headings:
            table.add_column(heading)
        for stage in get_args(Stage):
            chosen = [run for run in runs if run.stage == stage]
            if not chosen:
                continue
            results[f"{task_id} {stage}"] = [round(score(task, run), 4) for run in chosen]
            best = [record for run in chosen if (record := best_checkpoint(task, run.history))]
            columns = (
                [record.val_accuracy or 0.0 for record in best],
                [record.gap or 0.0 for record in best],
                [mean_best(run) for run in chosen],
                [tasks.utility(task, run.history) for run in chosen],
                [score(task, run) for run in chosen],
                [run.hidden_test_accuracy for run in chosen],
            )
            table.add_row(stage, str(len(chosen)), *map(_spread, columns))
        console.print(table)
        results[f"{task_id} loss levels"] = loss_levels(task_id)
    return results


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else mean


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make calibrate", description="Calibrate the scales.")
    parser.add_argument("command", choices=("search", "finals", "confirm", "again", "report"))
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(CLASSIC_IDS)}; default: all")
    parser.add_argument("--trials", type=int, default=10, help="of the search")
    parser.add_argument("--best", type=int, default=3, help="how many reach the finals")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    options = parser.parse_args(argv)
    task_ids: list[TaskId] = [
        task_id for task_id in CLASSIC_IDS if task_id in (options.tasks or CLASSIC_IDS)
    ]
    if unknown := set(options.tasks) - set(CLASSIC_IDS):
        parser.error(f"tasks: unknown {', '.join(sorted(unknown))}; of {', '.join(CLASSIC_IDS)}")
    console = stdout(150)
    jobs: list[Job] = []
    for task_id in task_ids:
        if options.command == "search":
            trials = range(options.first, options.first + options.trials)
            jobs += [
                Job(task_id, "search", SEARCH_SEED, SPACES[task_id].draw(trial)) for trial in trials
            ]
        elif options.command == "finals":
            recipes = finalists(task_id, options.best)
            jobs += [Job(task_id, "final", seed, r) for r in recipes for seed in FINAL_SEEDS]
        elif options.command == "confirm":
            jobs += [Job(task_id, "reference", seed, RECIPES[task_id]) for seed in SEEDS]
            jobs += [Job(task_id, "naive", seed, NAIVE) for seed in SEEDS]
        elif options.command == "again":
            jobs += sorted(
                (run.job for run in recorded(task_id)), key=lambda job: job.stage != "naive"
            )
    train_all(jobs, console)
    print(json.dumps(report(task_ids, console)))


if __name__ == "__main__":
    main()
