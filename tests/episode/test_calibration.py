"""The frozen scales, held against the recorded runs that they rest on; nothing is trained here."""

from __future__ import annotations

import statistics

import pytest

from ml_trainer_env.agents.scripted import RECIPES
from ml_trainer_env.benchmarks.calibration.calibrate import (
    FINAL_SEEDS,
    NAIVE,
    SEARCH_SEED,
    SEEDS,
    SPACES,
    Run,
    Stage,
    finalists,
    loss_levels,
    recorded,
    score,
    winner,
)
from ml_trainer_env.models import TrainingConfig
from ml_trainer_env.server.episode.rewards import step_reward
from ml_trainer_env.server.models_nn import NETWORKS
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.task_ids import CLASSIC_IDS, TaskId

# What the naive run of a common language model should earn.
NAIVE_RANGE: dict[TaskId, tuple[float, float]] = {
    "easy_mnist": (0.3, 0.9),
    "medium_fashion": (0.4, 0.7),
    "hard_cifar": (0.2, 0.5),
}
REFERENCE = 0.95

every_task = pytest.mark.parametrize("task_id", CLASSIC_IDS)


def runs(task_id: TaskId, stage: Stage) -> list[Run]:
    return [run for run in recorded(task_id) if run.stage == stage]


def scores(task_id: TaskId, stage: Stage) -> list[float]:
    return [score(TASKS[task_id], run) for run in runs(task_id, stage)]


@every_task
def test_the_runs_are_of_this_network_and_this_budget(task_id: TaskId) -> None:
    task = TASKS[task_id]
    for run in recorded(task_id):
        assert run.network == str(NETWORKS[task.workload.network])
        assert len(run.val_accuracy) == task.max_epochs


@every_task
def test_five_seeds_of_the_reference_and_of_the_naive_run(task_id: TaskId) -> None:
    recipes: dict[Stage, TrainingConfig] = {"reference": RECIPES[task_id], "naive": NAIVE}
    for stage, recipe in recipes.items():
        found = runs(task_id, stage)
        assert sorted(run.seed for run in found) == list(SEEDS)
        assert all(run.recipe == recipe for run in found)


@every_task
def test_the_reference_recipe_is_worth_the_top_of_the_scale(task_id: TaskId) -> None:
    assert statistics.fmean(scores(task_id, "reference")) >= REFERENCE


@every_task
def test_the_naive_run_is_worth_what_common_models_should_earn(task_id: TaskId) -> None:
    low, high = NAIVE_RANGE[task_id]
    assert low <= statistics.fmean(scores(task_id, "naive")) <= high
    assert max(scores(task_id, "naive")) < min(scores(task_id, "reference"))


@every_task
def test_the_naive_run_passes_all_levels_of_the_loss(task_id: TaskId) -> None:
    levels = TASKS[task_id].loss_levels
    assert levels == loss_levels(task_id)
    assert sorted(levels, reverse=True) == list(levels)
    for run in runs(task_id, "naive"):
        assert step_reward([], run.history, levels).convergence == pytest.approx(0.25)


@every_task
def test_the_best_of_the_search_met_in_the_finals_on_other_seeds(task_id: TaskId) -> None:
    finals = runs(task_id, "final")
    assert not set(FINAL_SEEDS) & {*SEEDS, SEARCH_SEED}
    entered = {str(run.recipe) for run in finals}
    for recipe in entered:
        assert sorted(run.seed for run in finals if str(run.recipe) == recipe) == [*FINAL_SEEDS]
    assert entered >= {str(recipe) for recipe in finalists(task_id, 3)}


@every_task
def test_the_reference_is_the_winner_of_the_finals(task_id: TaskId) -> None:
    assert winner(task_id) == RECIPES[task_id]


@every_task
def test_a_trial_of_the_search_can_be_drawn_again(task_id: TaskId) -> None:
    found = [run.recipe for run in runs(task_id, "search")]
    assert sorted(map(str, found)) == sorted(
        str(SPACES[task_id].draw(trial)) for trial in range(len(found))
    )
