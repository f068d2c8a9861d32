"""Tasks and grades: every formula by hand, and what no history may do to a score."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import accuracies, curve, diverged, finished, histories

from ml_trainer_env.models import (
    EpochRecord,
    Grade,
)
from ml_trainer_env.server.runs import Scale
from ml_trainer_env.server.tasks import TASKS, Task, best_checkpoint, grade, utility
from ml_trainer_env.task_ids import CLASSIC_IDS

# The formulas are checked on scales of round numbers; the frozen ones are data.
UNIT = Scale(low=0.0, high=1.0)
EASY = TASKS["easy_mnist"]
MEDIUM = replace(TASKS["medium_fashion"], scale=Scale(low=0.8, high=0.9, gap_weight=0.4))
HARD = replace(TASKS["hard_cifar"], scale=UNIT, max_epochs=4, reference_utility=0.8)

tasks = st.sampled_from(list(TASKS.values()))


def values(result: Grade) -> dict[str, float]:
    return {part.name: part.value for part in result.components}


def accuracy(record: EpochRecord) -> float:
    assert record.val_accuracy is not None
    return record.val_accuracy


def inputs(result: Grade, name: str) -> dict[str, float]:
    return next(part.inputs for part in result.components if part.name == name)


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task_id", "title", "network", "dataset", "shards", "max_epochs", "weights"),
    [
        ("easy_mnist", "MNIST Digit Classifier", "mnist_mlp", "mnist", 1, 100, {"accuracy": 1.0}),
        (
            "medium_fashion",
            "Fashion Item Classifier",
            "fashion_cnn",
            "fashion_mnist",
            2,
            80,
            {"accuracy": 0.6, "generalization": 0.4},
        ),
        (
            "hard_cifar",
            "CIFAR-10 Under Budget",
            "cifar_cnn",
            "cifar10",
            2,
            60,
            {"accuracy": 0.5, "efficiency": 0.3, "stability": 0.2},
        ),
    ],
)
def test_the_table(
    task_id: str,
    title: str,
    network: str,
    dataset: str,
    shards: int,
    max_epochs: int,
    weights: dict[str, float],
):
    task = TASKS[task_id]
    assert (task.task_id, task.title, task.workload.network) == (task_id, title, network)
    assert (task.workload.dataset, task.workload.shards, task.max_epochs) == (
        dataset,
        shards,
        max_epochs,
    )
    assert dict(task.weights) == weights
    assert 0 < task.scale.low < task.scale.high < 1


def test_the_table_holds_every_task_in_order():
    assert tuple(TASKS) == CLASSIC_IDS


def test_the_easy_scale_is_the_specified_one():
    assert (EASY.scale.low, EASY.scale.high - EASY.scale.low) == (0.88, pytest.approx(0.095))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_goal_gives_the_formula_with_the_numbers_that_count(task: Task):
    numbers = [task.scale.low, task.scale.high, task.max_epochs]
    numbers += [weight for _, weight in task.weights]
    if task.reference_utility is not None:
        numbers.append(task.reference_utility)
    for number in numbers:
        assert f"{number:g}" in task.goal
    for letter in {"easy": "A", "medium": "AG", "hard": "AES"}[task.task_id.split("_")[0]]:
        assert f"{letter} = " in task.goal


# --- the formulas, by hand -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "score"),
    [(0.1, 0.0), (0.88, 0.0), (0.9275, 0.5), (0.956, 0.8), (0.975, 1.0), (1.0, 1.0)],
)
def test_easy_is_accuracy_on_its_scale(accuracy: float, score: float):
    assert grade(EASY, curve([accuracy])).score == pytest.approx(score)


@pytest.mark.parametrize(
    ("accuracy", "gap", "a", "g"),
    [
        (0.90, 0.05, 1.0, 1.0),
        (0.90, 0.02, 1.0, 1.0),
        (0.88, -0.03, 0.8, 1.0),
        (0.86, 0.10, 0.6, 0.5),
        (0.86, 0.15, 0.6, 0.0),
        (0.82, 0.07, 0.2, 0.8 * 0.4),  # min(1, 2A) = 0.4
        (0.10, 0.00, 0.0, 0.0),  # an untrained network has no gap, and no credit for it
    ],
)
def test_medium_is_accuracy_and_generalization(accuracy: float, gap: float, a: float, g: float):
    result = grade(MEDIUM, curve([accuracy], clean_train_accuracy=[accuracy + gap]))
    assert values(result) == pytest.approx({"accuracy": a, "generalization": g})
    assert result.score == pytest.approx(0.6 * a + 0.4 * g)
    assert result.generalization_gap == pytest.approx(gap)
    assert inputs(result, "generalization")["gap"] == pytest.approx(gap)


def test_hard_is_accuracy_efficiency_and_stability():
    history = curve([0.2, 0.6, 0.4, 0.5], clean_train_loss=[2.0, 1.0, 1.25, 0.75])
    result = grade(HARD, history)
    # A = 0.6. U = (0.2 + 0.6 + 0.6 + 0.6) / 4 = 0.5, E = 0.5 / 0.8.
    # Rises 0.25, falls 1.0 + 0.5: S = (1 - 1/6) x min(1, 1.2).
    assert values(result) == pytest.approx(
        {"accuracy": 0.6, "efficiency": 0.625, "stability": 5 / 6}
    )
    assert result.score == pytest.approx(0.5 * 0.6 + 0.3 * 0.625 + 0.2 * 5 / 6)
    assert inputs(result, "stability") == pytest.approx(
        {"rises": 0.25, "falls": 1.5, "divergences": 0, "learned": 1.0}
    )


@pytest.mark.parametrize(
    ("curve_of_accuracies", "u"),
    [
        ([0.8, 0.8, 0.8, 0.8], 0.8),
        ([0.4], 0.4),  # epochs not run keep the last value
        ([0.4, 0.2], 0.4),  # the best so far, not the last
        ([None, 0.4], 0.3),  # nothing measured yet counts 0
        ([0.4, None, 0.8], 0.6),
        ([None], 0.0),
        ([], 0.0),
    ],
)
def test_utility(curve_of_accuracies: list[float | None], u: float):
    assert utility(HARD, curve(curve_of_accuracies)) == pytest.approx(u)


def test_utility_is_on_the_accuracy_scale():
    task = replace(HARD, scale=Scale(0.4, 0.8))
    assert utility(task, curve([0.2, 0.6, 0.9, 0.9])) == pytest.approx((0 + 0.5 + 1 + 1) / 4)


def test_efficiency_beyond_the_reference_is_no_more_than_full():
    assert values(grade(HARD, curve([0.9])))["efficiency"] == 1.0


@pytest.mark.parametrize(
    ("losses", "s"),
    [
        ([2.0], 0.0),  # one epoch: nothing fell
        ([2.0, 2.0, 2.0], 0.0),
        ([1.0, 2.0], 0.0),
        ([2.0, 1.0, 0.5], 1.0),
        ([2.0, 1.0, 1.5], 0.5),
        ([2.0, 1.0, 2.5], 0.0),  # rose more than it fell
    ],
)
def test_stability(losses: list[float], s: float):
    history = curve([0.9] * len(losses), clean_train_loss=losses)
    assert values(grade(HARD, history))["stability"] == pytest.approx(s)


def test_stability_needs_learning():
    history = curve([0.1, 0.1], clean_train_loss=[2.0, 1.0])
    assert values(grade(HARD, history))["stability"] == pytest.approx(0.2)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_stability_is_nothing_after_a_divergence(at: int):
    losses, results = [2.0, 1.0, 0.5, 0.4], [0.9, 0.9, 0.9, 0.9]
    assert values(grade(HARD, curve(results, clean_train_loss=losses)))["stability"] == 1.0
    wounded = [None if i == at else accuracy for i, accuracy in enumerate(results)]
    assert values(grade(HARD, curve(wounded, clean_train_loss=losses)))["stability"] == 0.0


# --- which checkpoint ----------------------------------------------------------------------------


def test_the_best_checkpoint_is_graded_the_earliest_on_a_tie():
    history = curve([0.80, 0.89, 0.85, 0.89], clean_train_accuracy=[0.8, 0.99, 0.85, 0.99])
    result = grade(MEDIUM, history)
    assert result.graded_epoch == 2
    assert result.val_accuracy == 0.89
    assert result.generalization_gap == pytest.approx(0.10)


def test_wrecking_the_network_afterwards_raises_nothing():
    history = curve([0.80, 0.89], clean_train_accuracy=[0.8, 1.0])
    wrecked = (*history, finished(3, 0.1), finished(4, 0.1))
    assert grade(MEDIUM, wrecked) == grade(MEDIUM, history)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize(
    ("history", "why"),
    [((), "nothing was trained"), ((diverged(1), diverged(2)), "every epoch diverged")],
)
def test_without_a_checkpoint_the_score_is_nothing(
    task: Task, history: tuple[EpochRecord, ...], why: str
):
    result = grade(task, history)
    assert result.score == 0
    assert set(values(result).values()) == {0.0}
    assert result.graded_epoch is result.val_accuracy is result.generalization_gap is None
    assert why in result.explanation


# --- the explanation -----------------------------------------------------------------------------


def test_the_explanation_names_the_numbers():
    history = curve([0.82, 0.86], clean_train_accuracy=[0.82, 0.96])
    assert grade(MEDIUM, history).explanation == (
        "Score 0.560 = 0.6 x accuracy 0.600 + 0.4 x generalization 0.500 for the checkpoint of "
        "epoch 2: accuracy from val accuracy 86.00% on the scale from 80.00% to 90.00%, "
        "generalization from a gap of 10.00% and min(1, 2A) = 1.000."
    )


def test_the_explanation_of_the_hard_task():
    history = curve([0.2, 0.6, None], clean_train_loss=[2.0, 1.0, 0.0])
    assert grade(HARD, history).explanation == (
        "Score 0.487 = 0.5 x accuracy 0.600 + 0.3 x efficiency 0.625 + 0.2 x stability 0.000 for "
        "the checkpoint of epoch 2: accuracy from val accuracy 60.00% on the scale from 0.00% to "
        "100.00%, efficiency from a utility of 0.500 against 0.800, stability from train loss "
        "rises of 0.000 against falls of 1.000 with 1 divergence and min(1, 2A) = 1.000."
    )


def test_the_grade_says_who_submitted_what():
    result = grade(HARD, curve([0.5]), submitted_by="call_limit")
    assert (result.submitted_by, result.task_id, result.task_version) == (
        "call_limit",
        "hard_cifar",
        HARD.version,
    )
    assert result.hidden_test_accuracy is None
    assert grade(HARD, ()).submitted_by == "agent"


def test_efficiency_without_a_reference_is_a_mistake_in_the_table():
    with pytest.raises(ValueError, match="reference utility"):
        grade(replace(HARD, reference_utility=None), curve([0.5]))


# --- any history ---------------------------------------------------------------------------------


@given(tasks, histories(max_size=30))
def test_scores_are_numbers_from_nothing_to_one_and_add_up(
    task: Task, history: tuple[EpochRecord, ...]
):
    result = grade(task, history)
    assert 0 <= result.score <= 1
    assert [(p.name, p.weight) for p in result.components] == list(task.weights)
    assert sum(weight for _, weight in task.weights) == pytest.approx(1)
    assert result.score == pytest.approx(sum(p.weight * p.value for p in result.components))
    for part in result.components:
        assert 0 <= part.value <= 1
        assert all(math.isfinite(number) for number in part.inputs.values())
    assert result.explanation.endswith(".")
    assert ". " not in result.explanation
    assert "nan" not in result.explanation


@pytest.mark.parametrize("task", [EASY, HARD], ids=["easy", "hard"])
@given(history=histories(max_size=30))
def test_the_best_checkpoint_is_before_all_ties_and_below_none(
    task: Task, history: tuple[EpochRecord, ...]
):
    best = best_checkpoint(task, history)
    measured = [(r.val_accuracy, r.epoch) for r in history if r.val_accuracy is not None]
    if best is None:
        assert not measured
    else:
        assert best.val_accuracy == max(accuracy for accuracy, _ in measured)
        assert best.epoch == min(e for a, e in measured if a == best.val_accuracy)


@given(st.sampled_from([EASY, HARD]), histories(min_size=1, max_size=30), st.integers(1, 30))
def test_training_on_never_lowers_accuracy_or_efficiency(
    task: Task, history: tuple[EpochRecord, ...], cut: int
):
    early, late = values(grade(task, history[:cut])), values(grade(task, history))
    assert late["accuracy"] >= early["accuracy"]
    assert late.get("efficiency", 0) >= early.get("efficiency", 0) - 1e-12
    assert utility(task, history) >= utility(task, history[:cut]) - 1e-12


@given(histories(min_size=1, max_size=30))
def test_on_medium_the_graded_epoch_is_the_one_that_would_score_best(
    history: tuple[EpochRecord, ...],
):
    alone = [grade(MEDIUM, [record]).score for record in history]
    graded = grade(MEDIUM, history)
    assert graded.score == max(alone)
    equals = [r for r, score in zip(history, alone, strict=True) if score == graded.score]
    best = max((r for r in equals if r.val_accuracy is not None), key=accuracy, default=None)
    assert graded.graded_epoch == (best and best.epoch)


@given(st.sampled_from([EASY, MEDIUM]), histories(min_size=1, max_size=30), st.integers(1, 30))
def test_training_on_never_lowers_the_score_of_easy_and_medium(
    task: Task, history: tuple[EpochRecord, ...], cut: int
):
    assert grade(task, history).score >= grade(task, history[:cut]).score


def test_on_medium_a_lower_accuracy_with_a_smaller_gap_is_graded():
    history = curve([0.88, 0.89], clean_train_accuracy=[0.93, 1.0])
    assert grade(MEDIUM, history).graded_epoch == 1
    assert grade(MEDIUM, history[1:]).score < grade(MEDIUM, history).score


@given(tasks, histories(min_size=1, max_size=30), accuracies)
def test_the_score_rises_with_accuracy(task: Task, history: tuple[EpochRecord, ...], share: float):
    """A better best epoch at the same gap never scores less."""
    best = best_checkpoint(task, history)
    if best is None:
        return
    assert best.val_accuracy is not None
    assert best.clean_train_accuracy is not None
    lift = share * (1 - best.val_accuracy)
    better = best.model_copy(
        update={
            "val_accuracy": best.val_accuracy + lift,
            "clean_train_accuracy": best.clean_train_accuracy + lift,
        }
    )
    lifted = [better if record is best else record for record in history]
    assert grade(task, lifted).score >= grade(task, history).score - 1e-12


@given(tasks, histories(min_size=1, max_size=30), accuracies)
def test_the_score_falls_with_the_gap(
    task: Task, history: tuple[EpochRecord, ...], widening: float
):
    best = best_checkpoint(task, history)
    if best is None:
        return
    assert best.clean_train_accuracy is not None
    wider = best.model_copy(update={"clean_train_accuracy": best.clean_train_accuracy + widening})
    widened = [wider if r is best else r for r in history]
    before, after = grade(task, history).score, grade(task, widened).score
    if "generalization" in dict(task.weights):
        assert after <= before
    else:
        assert after == before


@given(tasks, histories(max_size=30))
def test_a_divergence_at_the_end_never_raises_the_score(
    task: Task, history: tuple[EpochRecord, ...]
):
    hurt = (*history, diverged(len(history) + 1))
    assert grade(task, hurt).score <= grade(task, history).score + 1e-12
