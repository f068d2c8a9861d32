"""Requests carried out in slices: whatever is lost on the way, the epochs are those of the run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from executors import (
    PATIENCE,
    PLAN,
    STATE,
    WILD,
    Clock,
    FakeExecutor,
    after,
    begin,
    grade,
    plan,
    told,
)
from live import eventually

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.runtime.asking import Asker
from ml_trainer_env.server.runtime.cores import SLICE, Cores, Turn
from ml_trainer_env.server.runtime.orders import Order
from ml_trainer_env.server.runtime.runner import (
    ATTEMPTS,
    STARTS,
    ExecutorLost,
    NeverStarted,
    SharedEpochMismatch,
    SliceRunner,
    Trained,
    WorkerFailed,
    WorkerLost,
)
from ml_trainer_env.server.runtime.states import SUFFIX, States

ROOMY = 10**9
PLANS = [plan(0.001 * n) for n in range(1, 7)]


def runner_of(executor: FakeExecutor, budget: int = ROOMY) -> SliceRunner:
    return SliceRunner(executor, Cores(1, 1), States(budget))


def trained(runner: SliceRunner, plans: list[EpochPlan], run: Run | None = None) -> list[Trained]:
    return list(runner.train(run or begin(), plans))


def at(*places: tuple[int, int], error: Exception) -> Callable[[Order, int], None]:
    """Trouble in these epochs, at these (epoch, how manyth time it begins, from 1)."""
    times: dict[int, int] = {}

    def trouble(_: Order, epoch: int) -> None:
        times[epoch] = times.get(epoch, 0) + 1
        if (epoch, times[epoch]) in places:
            raise error

    return trouble


def begun(executor: FakeExecutor) -> list[int]:
    """The epochs, as they were begun."""
    return [epoch for _, epoch in executor.begun]


@pytest.fixture
def executor() -> FakeExecutor:
    return FakeExecutor()


# Slices ---------------------------------------------------------------------------------------


def test_a_request_is_one_run_however_it_is_sliced() -> None:
    for seconds in (0.0, SLICE / 2, SLICE):
        executor = FakeExecutor(clock := Clock(), seconds)
        runner = runner_of(executor)
        assert [t.record for t in trained(runner, PLANS)] == told(begin(), PLANS)
        assert begun(executor) == [1, 2, 3, 4, 5, 6]
        assert clock.now == 6 * seconds
        assert len(executor.orders) == {0.0: 1, SLICE / 2: 3, SLICE: 6}[seconds]


def test_every_slice_goes_on_from_the_state_of_the_last() -> None:
    executor = FakeExecutor(Clock(), SLICE)
    trained(runner_of(executor), PLANS[:3])
    keys = after(begin(), PLANS).keys()
    assert [order.state for order in executor.orders] == [None, keys[1], keys[2]]
    assert [order.again for order in executor.orders] == [0, 0, 0]
    assert [order.at_least for order in executor.orders] == [1, 1, 1]


def test_a_divergence_ends_the_request(executor: FakeExecutor) -> None:
    plans = [PLANS[0], plan(WILD), PLANS[1]]
    came = trained(runner := runner_of(executor), plans)
    assert [t.record.diverged for t in came] == [False, True]
    run = after(begin(), plans[:2])
    assert [t.record for t in came] == list(run.history)
    assert [t.record for t in trained(runner, [PLANS[2]], run)] == told(run, [PLANS[2]])


def test_a_divergence_that_is_trained_again_does_not(executor: FakeExecutor) -> None:
    run = after(begin(), [PLANS[0], plan(WILD), PLANS[1]])
    came = trained(runner_of(executor), PLANS[2:4], run)
    assert [t.record for t in came] == told(run, PLANS[2:4])
    assert begun(executor) == [1, 2, 3, 4, 5]


# Nobody listens -------------------------------------------------------------------------------


def test_when_the_asker_goes_away_no_further_epoch_is_told(executor: FakeExecutor) -> None:
    gone = threading.Event()
    runner = runner_of(executor)
    asker = Asker(gone.is_set)
    came = []
    for each in runner.train(begin(), PLANS, asker):
        came.append(each.record)
        if len(came) == 2:
            gone.set()
    assert came == told(begin(), PLANS[:2])
    assert max(begun(executor)) <= 3  # the epoch in progress was the last
    assert list(runner.train(begin(), PLANS, asker)) == []
    assert len(executor.orders) == 1


def test_closing_stops_and_the_executor_is_of_use(executor: FakeExecutor) -> None:
    runner = runner_of(executor)
    with closing(runner.train(begin(), PLANS)) as epochs:
        assert next(epochs).record == told(begin(), PLANS)[0]
    assert max(begun(executor)) == 2
    with runner.states.nearest(after(begin(), PLANS)) as nearest:
        assert nearest.epoch == 2  # what was trained is not lost
    run = after(begin(), PLANS[:1])
    assert [t.record for t in trained(runner, PLANS[1:], run)] == told(run, PLANS[1:])


def test_closing_gives_the_core_back(executor: FakeExecutor) -> None:
    runner = runner_of(executor)
    with closing(runner.train(begin(), PLANS)) as epochs:
        next(epochs)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(trained, runner, PLANS[:1], begin(1))
            eventually(lambda: runner.cores.waiting == 1, PATIENCE)
            epochs.close()
            assert [t.record for t in other.result(PATIENCE)] == told(begin(1), PLANS[:1])


def test_an_executor_that_is_lost_while_it_is_closed_is_no_error(executor: FakeExecutor) -> None:
    executor.trouble = at((2, 1), error=ExecutorLost())
    epochs = (runner := runner_of(executor)).train(begin(), PLANS)
    next(epochs)
    epochs.close()
    assert len(trained(runner, PLANS)) == 6


# Executors that are lost ----------------------------------------------------------------------


@pytest.mark.parametrize("lost", range(1, 7))
def test_a_lost_executor_costs_at_most_its_slice(lost: int) -> None:
    """Slices of two epochs; each is told once, and what was told stays."""
    executor = FakeExecutor(Clock(), SLICE / 2)
    executor.trouble = at((lost, 1), error=ExecutorLost())
    assert [t.record for t in trained(runner_of(executor), PLANS)] == told(begin(), PLANS)
    first = lost - 1 + lost % 2  # of the slice that was lost
    assert begun(executor) == [*range(1, lost + 1), *range(first, 7)]


@pytest.mark.parametrize("error", [ExecutorLost(), NeverStarted()])
def test_what_was_told_before_the_loss_stays(executor: FakeExecutor, error: Exception) -> None:
    executor.trouble = at(*((3, n) for n in range(1, STARTS + 1)), error=error)
    epochs = runner_of(executor).train(begin(), PLANS)
    assert [next(epochs).record, next(epochs).record] == told(begin(), PLANS[:2])
    with pytest.raises(WorkerLost):
        next(epochs)


@pytest.mark.parametrize(("error", "most"), [(ExecutorLost(), ATTEMPTS), (NeverStarted(), STARTS)])
def test_attempts_at_one_epoch_are_bounded(
    executor: FakeExecutor, error: Exception, most: int
) -> None:
    """An executor that never started says little about the epoch, so it may be tried more often."""
    runner = runner_of(executor)
    executor.trouble = at(*((1, n) for n in range(1, most + 1)), error=error)
    with pytest.raises(WorkerLost):
        trained(runner, PLANS)
    assert begun(executor) == [1] * most
    executor.trouble = at(*((0, n) for n in range(1, most + 1)), error=error)
    with pytest.raises(WorkerLost):
        runner.test_accuracy(begin())
    assert begun(executor) == [1] * most + [0] * most


def test_epochs_that_are_trained_again_are_no_progress(executor: FakeExecutor) -> None:
    """Nothing is at hand, so each attempt begins with epochs that harm nobody."""
    executor.trouble = at(*((3, n) for n in range(1, ATTEMPTS + 1)), error=ExecutorLost())
    with pytest.raises(WorkerLost):
        trained(runner_of(executor), PLANS[3:], after(begin(), PLANS[:3]))
    assert begun(executor) == [1, 2, 3] * ATTEMPTS


def test_an_epoch_that_is_trained_resets_the_count(executor: FakeExecutor) -> None:
    losses = [(epoch, n) for epoch in (2, 4, 6) for n in range(1, ATTEMPTS)]
    executor.trouble = at(*losses, error=ExecutorLost())
    assert [t.record for t in trained(runner_of(executor), PLANS)] == told(begin(), PLANS)


# States that are gone -------------------------------------------------------------------------


def test_a_run_whose_states_are_gone_is_trained_again(executor: FakeExecutor) -> None:
    run = after(begin(), PLANS[:3])
    came = trained(runner_of(executor), PLANS[3:], run)
    assert [t.record for t in came] == told(run, PLANS[3:])
    assert begun(executor) == [1, 2, 3, 4, 5, 6]
    assert (executor.orders[0].again, len(executor.orders[0].plans)) == (3, 6)


def test_it_goes_on_from_the_nearest_that_is_at_hand(executor: FakeExecutor) -> None:
    runner = runner_of(executor)
    trained(runner, PLANS[:2])
    run = after(begin(), PLANS[:4])
    assert [t.record for t in trained(runner, PLANS[4:], run)] == told(run, PLANS[4:])
    assert begun(executor) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("budget", [0, STATE - 1, STATE])
@pytest.mark.parametrize("seconds", [0.0, SLICE / 2, SLICE])
def test_without_room_for_states_it_still_comes_to_its_end(budget: int, seconds: float) -> None:
    executor = FakeExecutor(Clock(), seconds)
    runner = runner_of(executor, budget)
    came = trained(runner, PLANS)
    assert [t.record for t in came] == told(begin(), PLANS)
    run = after(begin(), PLANS)
    assert runner.test_accuracy(run) == grade(run.key)
    assert runner.states.used <= budget


def test_without_room_it_comes_to_its_end_in_a_crowd(
    executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices that only train again do not end before they have reached something new."""
    monkeypatch.setattr(Turn, "over", lambda _: True)  # others always wait
    runner = runner_of(executor, budget=0)
    assert [t.record for t in trained(runner, PLANS)] == told(begin(), PLANS)
    run = after(begin(), PLANS)
    assert runner.test_accuracy(run) == grade(run.key)


@pytest.mark.parametrize("wrong", [1, 2, 3])
def test_an_epoch_that_comes_out_differently_is_found_out(
    executor: FakeExecutor, wrong: int
) -> None:
    run = after(begin(), PLANS[:3])
    executor.broken = {run.keys()[wrong]}
    named = rf"epoch {wrong} of mnist, seed 0.*{run.key}.*train_loss, train_accuracy, val_loss"
    with pytest.raises(SharedEpochMismatch, match=named):
        trained(runner_of(executor), PLANS[3:], run)
    with pytest.raises(SharedEpochMismatch):
        runner_of(executor).test_accuracy(run)


@pytest.fixture
def damaged(tmp_path: Path, executor: FakeExecutor) -> tuple[SliceRunner, Path]:
    """A runner whose file of the third epoch's state holds something else."""
    runner = SliceRunner(executor, Cores(1, 1), States(ROOMY, tmp_path))
    trained(runner, PLANS[:2])
    trained(runner, PLANS[2:3], after(begin(), PLANS[:2]))
    executor.begun.clear()
    file = tmp_path / f"{after(begin(), PLANS[:3]).key}{SUFFIX}"
    file.write_bytes(file.read_bytes()[:-1])
    return runner, file


def test_a_file_that_is_no_state_is_removed_and_trained_again(
    damaged: tuple[SliceRunner, Path], executor: FakeExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    runner, file = damaged
    run = after(begin(), PLANS[:3])
    assert [t.record for t in trained(runner, PLANS[3:], run)] == told(run, PLANS[3:])
    assert begun(executor) == [3, 4, 5, 6]  # on from the second epoch's
    assert not file.exists()
    assert "is damaged" in caplog.text


def test_grading_survives_a_file_that_is_no_state(
    damaged: tuple[SliceRunner, Path], executor: FakeExecutor
) -> None:
    runner, file = damaged
    run = after(begin(), PLANS[:3])
    content = file.read_bytes()
    assert runner.test_accuracy(run) == grade(run.key)
    assert begun(executor) == [3, 0]
    assert file.read_bytes() != content


# Grades and failures --------------------------------------------------------------------------


def test_grading_trains_nothing_that_is_at_hand(executor: FakeExecutor) -> None:
    runner = runner_of(executor)
    trained(runner, PLANS)
    run = after(begin(), PLANS)
    assert runner.test_accuracy(run) == grade(run.key)
    assert begun(executor) == [1, 2, 3, 4, 5, 6, 0]
    assert runner.test_accuracy(begin(7)) == grade(begin(7).key)  # untrained


def test_a_failure_of_the_engine_is_told_and_nothing_is_tried_again(
    executor: FakeExecutor,
) -> None:
    executor.trouble = at((2, 1), error=ArithmeticError("two and two"))
    runner = runner_of(executor)
    epochs = runner.train(begin(), PLANS)
    assert next(epochs).record == told(begin(), PLANS)[0]
    with pytest.raises(WorkerFailed, match="ArithmeticError: two and two"):
        next(epochs)
    assert begun(executor) == [1, 2]
    assert len(trained(runner, [PLAN])) == 1
