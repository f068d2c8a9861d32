"""The rules of an episode, on scripted epochs: divergence, grading, the call limit, reward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes import HIDDEN_TEST_ACCURACY, FakeRunner
from play import configured, diverge, of

from ml_trainer_env.models import (
    MAX_TOOL_CALLS,
    TrainingStatus,
)
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.validation import ActionError

# Divergence -------------------------------------------------------------------------------------


def test_divergence_spends_its_epoch_stops_training_and_hides_the_metrics(
    episode: Episode,
) -> None:
    configured(episode).run_epochs(5)
    episode.adjust_learning_rate(10)
    status = episode.run_epochs(8)
    assert (status.epochs_run, status.current_epoch, status.remaining_budget) == (1, 6, 94)
    assert status.is_diverged
    assert status.convergence_signal == "diverged"
    assert (status.train_loss, status.val_loss, status.generalization_gap) == (None, None, None)
    assert status.loss_history_last_10[-1] is None
    assert status.best_val_epoch == 5
    assert status.reward == pytest.approx(-0.2)
    assert "adjust_learning_rate" in status.message


def test_diverged_training_goes_on_only_after_a_change(episode: Episode) -> None:
    configured(episode).run_epochs(5)
    diverge(episode)
    before = episode.now
    with pytest.raises(ActionError, match="configure_training or adjust_learning_rate"):
        episode.run_epochs(1)
    assert episode.now is before
    assert episode.toggle_augmentation(False).is_diverged  # not one of the two


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.configure_training({"learning_rate": 0.01}),
        lambda e: e.configure_training({}),
        lambda e: e.adjust_learning_rate(0.01),
    ],
)
def test_a_change_resumes_from_the_best_checkpoint(
    episode: Episode, change: Callable[[Episode], TrainingStatus]
) -> None:
    configured(episode).run_epochs(5)
    best = episode.now.training.best
    assert best is not None
    diverge(episode)
    status = change(episode)
    assert not status.is_diverged
    assert (status.val_loss, status.val_accuracy) == (best.val_loss, best.val_accuracy)
    assert "resumes from the best checkpoint, epoch 5, with fresh optimizer state" in status.message
    episode.adjust_learning_rate(0.01)
    assert episode.run_epochs(2).current_epoch == 8


def test_a_divergence_before_any_checkpoint_resumes_from_the_start(episode: Episode) -> None:
    configured(episode, learning_rate=10.0)
    assert episode.run_epochs(3).is_diverged
    status = episode.configure_training({"learning_rate": 0.01})
    assert (status.val_loss, status.best_val_accuracy) == (None, None)
    assert "resumes from the initial weights" in status.message
    assert episode.run_epochs(1).val_loss is not None


# The end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", TASKS)
def test_submission_grades_the_best_checkpoint_and_ends(task_id: str, runner: FakeRunner) -> None:
    episode = configured(of(task_id, runner))
    episode.run_epochs(20)
    status = episode.submit_model()
    assert status.done
    assert status.grade is not None
    assert status.grade.score > 0
    assert status.grade.graded_epoch == 20
    assert status.grade.hidden_test_accuracy == HIDDEN_TEST_ACCURACY
    assert status.grade.submitted_by == "agent"
    assert status.reward == status.reward_terms.submission == status.grade.score


def test_submitting_untrained_scores_zero_and_looks_at_no_test_image(
    episode: Episode, runner: FakeRunner
) -> None:
    grade = episode.submit_model().grade
    assert grade is not None
    assert (grade.score, grade.graded_epoch, grade.hidden_test_accuracy) == (0, None, None)
    assert runner.tested == 0


def test_no_grade_before_the_end(episode: Episode, runner: FakeRunner) -> None:
    configured(episode).run_epochs(5)
    assert episode.get_training_status().grade is None
    assert runner.tested == 0


@pytest.mark.parametrize(
    "act",
    [
        lambda e: e.configure_training({}),
        lambda e: e.run_epochs(1),
        lambda e: e.adjust_learning_rate(0.1),
        lambda e: e.toggle_augmentation(True),
        lambda e: e.submit_model(),
    ],
)
def test_after_the_end_only_the_status_answers(
    episode: Episode, act: Callable[[Episode], TrainingStatus]
) -> None:
    configured(episode).run_epochs(5)
    grade = episode.submit_model().grade
    before = episode.now
    with pytest.raises(ActionError, match="reset"):
        act(episode)
    assert episode.now is before
    status = episode.get_training_status()
    assert (status.done, status.reward, status.grade) == (True, 0.0, grade)


@pytest.mark.parametrize("trained", [False, True])
def test_the_last_call_submits_by_itself_once(
    episode: Episode, runner: FakeRunner, trained: bool
) -> None:
    configured(episode)
    if trained:
        episode.run_epochs(20)
    for _ in range(MAX_TOOL_CALLS - episode.now.calls - 1):
        assert episode.toggle_augmentation(True).reward == 0
        assert not episode.done
    status = episode.toggle_augmentation(True)
    assert status.done
    assert status.tool_calls_left == 0
    assert status.grade is not None
    assert status.grade.submitted_by == "call_limit"
    assert status.reward == status.grade.score
    assert (status.grade.score > 0) == trained
    assert "the best model was submitted" in status.message
    assert runner.tested == trained


def test_the_last_call_may_train_and_earns_both(episode: Episode) -> None:
    configured(episode)
    for _ in range(MAX_TOOL_CALLS - 2):
        episode.toggle_augmentation(False)
    status = episode.run_epochs(5)
    assert status.done
    assert status.reward_terms.progress > 0
    assert status.reward_terms.submission > 0
    assert status.reward == pytest.approx(status.reward_terms.total)


def test_the_last_call_may_be_the_submission(episode: Episode) -> None:
    configured(episode).run_epochs(5)
    for _ in range(MAX_TOOL_CALLS - 3):
        episode.toggle_augmentation(False)
    status = episode.submit_model()
    assert status.grade is not None
    assert status.grade.submitted_by == "agent"
    assert status.reward == status.grade.score


def test_reading_the_status_is_free_and_earns_nothing(episode: Episode) -> None:
    configured(episode).run_epochs(5)
    before = episode.now
    for _ in range(MAX_TOOL_CALLS + 5):
        assert episode.get_training_status().reward == 0
    assert episode.now is before


def test_only_training_and_submission_earn(episode: Episode) -> None:
    assert configured(episode).run_epochs(5).reward > 0
    for status in (
        episode.configure_training({"dropout": 0.5}),
        episode.adjust_learning_rate(0.1),
        episode.toggle_augmentation(True),
    ):
        assert status.reward == 0
        assert not any(value for _, value in status.reward_terms)
