"""An action happens wholly or not at all, alone, and stops when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from fakes import FakeRunner
from live import eventually
from play import configured

from ml_trainer_env.models import (
    EpochPlan,
    TrainingStatus,
)
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.validation import ActionError

# Failures and threads ---------------------------------------------------------------------------


def test_our_own_failure_takes_the_whole_action_back(episode: Episode, runner: FakeRunner) -> None:
    configured(episode).run_epochs(2)
    before = episode.now

    def breaks(epoch: int, plan: EpochPlan) -> tuple[float, float, float]:
        if epoch == 5:
            raise OSError("a worker is gone")
        return 1.0, 0.9, 0.0

    runner.script = breaks
    with pytest.raises(OSError, match="a worker is gone"):
        episode.run_epochs(10)
    assert episode.now is before
    runner.script = lambda epoch, plan: (1.0, 0.9, 0.0)
    assert episode.run_epochs(10).current_epoch == 12


class Background:
    """`act()` in a thread; `result()` gives what it returned or raises what it raised."""

    def __init__(self, act: Callable[[], TrainingStatus]) -> None:
        self._outcome: list[TrainingStatus | BaseException] = []

        def run() -> None:
            try:
                self._outcome.append(act())
            except BaseException as error:
                self._outcome.append(error)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> TrainingStatus:
        self._thread.join(10)
        (outcome,) = self._outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


@pytest.fixture
def held(episode: Episode, runner: FakeRunner) -> Background:
    """`run_epochs(5)` in progress, held at the start of its third epoch of five."""
    configured(episode)
    gate = runner.gate

    def script(epoch: int, plan: EpochPlan) -> tuple[float, float, float]:
        if epoch == 2:
            gate.clear()
        return 1.0 / epoch, 0.9, 0.0

    runner.script = script
    background = Background(lambda: episode.run_epochs(5))
    for _ in range(3):
        assert runner.started.acquire(timeout=10)
    eventually(lambda: episode.now.epoch == 2)
    return background


def test_a_second_action_is_refused_at_once_while_one_runs(
    episode: Episode, runner: FakeRunner, held: Background
) -> None:
    for act in (
        lambda: episode.run_epochs(1),
        lambda: episode.configure_training({"dropout": 0.5}),
        lambda: episode.submit_model(),
    ):
        with pytest.raises(ActionError, match="busy: run_epochs is in progress"):
            act()
    assert held.running
    runner.gate.set()
    status = held.result()
    assert (status.current_epoch, status.current_config and status.current_config.dropout) == (5, 0)
    assert runner.most_at_once == 1


def test_the_status_meanwhile_is_that_of_the_last_finished_epoch(
    episode: Episode, runner: FakeRunner, held: Background
) -> None:
    status = episode.get_training_status()
    assert (status.current_epoch, status.val_loss, status.reward) == (2, 0.5, 0)
    assert "run_epochs is in progress" in status.message
    runner.gate.set()
    assert held.result().reward > 0


def test_a_stopped_run_keeps_the_epochs_it_finished(episode: Episode, runner: FakeRunner) -> None:
    configured(episode)
    status = episode.run_epochs(20, stop=lambda: runner.advanced == 3)
    assert (status.epochs_run, status.current_epoch) == (3, 3)
    assert "called off" in status.message
    assert status.reward > 0


def test_a_run_called_off_before_its_first_epoch_costs_nothing(episode: Episode) -> None:
    configured(episode)
    before = episode.now
    with pytest.raises(ActionError, match="called off"):
        episode.run_epochs(5, stop=lambda: True)
    assert episode.now is before


def test_abandoning_stops_at_the_next_epoch_boundary(
    episode: Episode, runner: FakeRunner, held: Background
) -> None:
    episode.abandon()
    runner.gate.set()
    episode.wait_until_idle()
    assert runner.advanced == 3
    with pytest.raises(ActionError, match="reset or closed"):
        held.result()
    with pytest.raises(ActionError, match="reset or closed"):
        episode.run_epochs(1)
