"""The rules of an episode, on scripted epochs: what is seen, the configuration, the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeRunner
from play import configured, of, plans

from ml_trainer_env.models import (
    HISTORY_TAIL,
    EpochPlan,
    TrainingConfig,
    TrainingStatus,
)
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.validation import ActionError

METRICS = (
    *("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("best_val_accuracy", "best_val_epoch", "generalization_gap"),
)


# What the agent sees ----------------------------------------------------------------------------


def test_before_the_first_epoch_metrics_are_null_not_zero(episode: Episode) -> None:
    status = episode.opening()
    assert {name: getattr(status, name) for name in METRICS} == dict.fromkeys(METRICS)
    assert (status.current_epoch, status.remaining_budget, status.max_epochs) == (0, 100, 100)
    assert status.loss_history_last_10 == status.val_loss_history_last_10 == ()
    assert status.convergence_signal == "not_started"
    assert status.current_config is None
    assert episode.task.goal in status.message
    assert "\n" not in status.message


def test_a_run_reports_its_epochs_and_the_last_measurements(episode: Episode) -> None:
    configured(episode)
    status = episode.run_epochs(12)
    last = episode.now.training.history[-1]
    assert (status.current_epoch, status.epochs_run, status.remaining_budget) == (12, 12, 88)
    assert (status.val_loss, status.val_accuracy) == (last.val_loss, last.val_accuracy)
    assert (status.train_loss, status.train_accuracy) == (last.train_loss, last.train_accuracy)
    assert status.generalization_gap == pytest.approx(0.02)
    assert (status.best_val_epoch, status.best_val_accuracy) == (12, last.val_accuracy)
    assert len(status.val_loss_history_last_10) == HISTORY_TAIL
    assert status.val_loss_history_last_10[-1] == last.val_loss
    assert status.message == "trained 12 epochs"


def test_the_epochs_of_the_last_action_are_reported_with_their_seconds(runner: FakeRunner) -> None:
    episode = configured(of("easy_mnist", runner))
    episode.run_epochs(3)
    episode.run_epochs(2)
    assert tuple(each.record for each in episode.reports) == episode.now.training.history[3:]
    assert all(each.seconds > 0 and not each.shared for each in episode.reports)
    episode.adjust_learning_rate(0.1)
    assert episode.reports == ()


def test_best_is_the_earliest_of_equals_and_stays_when_training_gets_worse(
    runner: FakeRunner,
) -> None:
    accuracies = [0.5, 0.9, 0.9, 0.4]
    runner.script = lambda epoch, plan: (1.0, accuracies[epoch - 1], 0.0)
    status = configured(of("easy_mnist", runner)).run_epochs(4)
    assert (status.best_val_epoch, status.best_val_accuracy, status.val_accuracy) == (2, 0.9, 0.4)


# Configuration ----------------------------------------------------------------------------------


def test_an_option_left_out_keeps_its_value(episode: Episode) -> None:
    first = episode.configure_training({"optimizer": "sgd", "dropout": 0.3})
    second = episode.configure_training({"learning_rate": 0.02})
    assert first.current_config is not None
    assert second.current_config is not None
    expected = TrainingConfig(optimizer="sgd", dropout=0.3, learning_rate=0.02)
    shown = second.current_config.model_dump(exclude={"learning_rate_in_force"})
    assert shown == expected.model_dump()


def test_configuring_nothing_sets_the_defaults_and_shows_them(episode: Episode) -> None:
    status = episode.configure_training({})
    assert status.message == "configured the defaults"
    config = status.current_config
    assert config is not None
    assert config.model_dump(exclude={"learning_rate_in_force"}) == TrainingConfig().model_dump()
    assert episode.run_epochs(1).epochs_run == 1


@pytest.mark.parametrize(
    "changes",
    [
        *({"optimizer": "sgd"}, {"dropout": 0.5}, {"batch_size": 256}, {"weight_decay": 0.1}),
        *({"lr_schedule": "cosine"}, {"learning_rate": 0.1}, {"augmentation": True}, {}),
    ],
)
def test_configuring_resets_neither_training_nor_budget(
    episode: Episode, changes: dict[str, Any]
) -> None:
    before = configured(episode).run_epochs(7)
    training = episode.now.training
    after = episode.configure_training(changes)
    assert episode.now.training is training
    assert (after.current_epoch, after.remaining_budget) == (7, before.remaining_budget)
    assert after.val_loss_history_last_10 == before.val_loss_history_last_10
    assert episode.run_epochs(1).current_epoch == 8


def test_the_plan_of_an_epoch_is_the_configuration_in_force(episode: Episode) -> None:
    configured(
        episode,
        optimizer="adamw",
        batch_size=128,
        weight_decay=0.05,
        dropout=0.2,
        learning_rate=0.01,
    )
    episode.run_epochs(1)
    episode.toggle_augmentation(True, 0.8)
    episode.run_epochs(1)
    episode.toggle_augmentation(False)
    episode.run_epochs(1)
    expected = EpochPlan(
        optimizer="adamw",
        learning_rate=0.01,
        batch_size=128,
        weight_decay=0.05,
        dropout=0.2,
        augmentation=0.0,
    )
    augmented = expected.model_copy(update={"augmentation": 0.8})
    assert plans(episode) == [expected, augmented, expected]


def test_toggling_without_a_strength_keeps_it(episode: Episode) -> None:
    configured(episode, augmentation_strength=0.25)
    config = episode.toggle_augmentation(True).current_config
    assert config is not None
    assert (config.augmentation, config.augmentation_strength) == (True, 0.25)


def test_an_adjusted_rate_is_used_exactly_and_the_schedule_keeps_its_shape(
    episode: Episode,
) -> None:
    configured(episode, lr_schedule="cosine", learning_rate=0.1)
    episode.run_epochs(10)
    untouched = [episode.now.schedule.rate(e) for e in range(10, 100)]  # type: ignore[union-attr]
    status = episode.adjust_learning_rate(0.007)
    assert status.current_config is not None
    assert status.current_config.learning_rate == 0.007
    assert status.current_config.learning_rate_in_force == 0.007
    episode.run_epochs(20)
    rates = [plan.learning_rate for plan in plans(episode)[10:]]
    assert rates[0] == 0.007
    shape = [rate / untouched[0] * 0.007 for rate in untouched[:20]]
    assert rates == pytest.approx(shape)


def test_the_horizon_of_a_schedule_is_the_budget_that_remains(episode: Episode) -> None:
    configured(episode)
    for _ in range(3):
        episode.run_epochs(20)
    episode.configure_training({"lr_schedule": "step", "learning_rate": 1.0})
    episode.run_epochs(20)
    episode.run_epochs(20)
    rates = [round(plan.learning_rate, 9) for plan in plans(episode)[60:]]
    assert rates == [1.0] * 14 + [0.1] * 13 + [0.01] * 13


def test_the_status_shows_the_rate_of_the_next_epoch(episode: Episode) -> None:
    configured(episode, lr_schedule="warmup_cosine", warmup_epochs=4, learning_rate=0.1)
    shown: list[float] = []
    for _ in range(6):
        config = episode.get_training_status().current_config
        assert config is not None
        shown.append(config.learning_rate_in_force)
        episode.run_epochs(1)
    assert shown == [plan.learning_rate for plan in plans(episode)]
    assert shown[0] < shown[3] < 0.1


@pytest.mark.parametrize(
    "act",
    [
        lambda e: e.run_epochs(1),
        lambda e: e.adjust_learning_rate(0.1),
        lambda e: e.toggle_augmentation(True),
    ],
)
def test_what_needs_a_configuration_says_so(
    episode: Episode, act: Callable[[Episode], TrainingStatus]
) -> None:
    before = episode.now
    with pytest.raises(ActionError, match="configure_training first"):
        act(episode)
    assert episode.now is before


# Budget -----------------------------------------------------------------------------------------


def test_more_than_the_budget_trains_what_remains_and_says_so(episode: Episode) -> None:
    configured(episode)
    for _ in range(4):
        episode.run_epochs(20)
    episode.run_epochs(15)
    status = episode.run_epochs(20)
    assert (status.epochs_run, status.remaining_budget) == (5, 0)
    assert status.message == "trained 5 epochs of 20: that was all that remained of the budget"


def test_a_spent_budget_says_to_submit_and_costs_nothing(episode: Episode) -> None:
    configured(episode)
    for _ in range(5):
        episode.run_epochs(20)
    before = episode.now
    with pytest.raises(ActionError, match="call submit_model"):
        episode.run_epochs(1)
    assert episode.now is before
    assert episode.submit_model().done
