"""Shared epochs: trained once for all who ask, with the bits of a real run, without a trace."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from executors import PLAN, WILD, FakeExecutor, after, begin, grade, plan, told
from real import Outcome, Player, engine
from states import value

from ml_trainer_env.agents.moves import SUBMIT, configure, rate
from ml_trainer_env.agents.moves import run as train
from ml_trainer_env.server.runs import Plan, Run
from ml_trainer_env.server.runtime import orders
from ml_trainer_env.server.runtime.asking import Asker, QueueFull
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.orders import METRICS, outcome_of
from ml_trainer_env.server.runtime.records import Records
from ml_trainer_env.server.runtime.runner import (
    SharedEpochMismatch,
    SliceRunner,
    Trained,
    WorkerFailed,
)
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.session import process
from ml_trainer_env.server.settings import Settings

PLANS = [plan(0.001 * n) for n in range(1, 5)]


@pytest.fixture
def records() -> Iterator[Records]:
    records = Records()
    yield records
    records.close()


@pytest.fixture
def executor() -> Iterator[FakeExecutor]:
    executor = FakeExecutor()
    yield executor
    for seed in executor.held:  # let go of whatever a failed test left behind
        executor.let_go(seed, 1000)


def slices(executor: FakeExecutor, cores: int = 8, max_waiting: int = 256) -> SliceRunner:
    return SliceRunner(executor, Cores(1, cores, max_waiting), States(10**9))


def asked(runner: SharingRunner, plans: Sequence[Plan], run: Run | None = None) -> list[Trained]:
    return list(runner.train(run or begin(), plans))


def shared(epochs: list[Trained]) -> list[bool]:
    return [epoch.shared for epoch in epochs]


# One after another ----------------------------------------------------------------------------


def test_what_was_trained_is_known(executor: FakeExecutor, records: Records) -> None:
    runner = SharingRunner(slices(executor), records)
    first, second = asked(runner, PLANS), asked(runner, PLANS)
    assert [t.record for t in first] == [t.record for t in second] == told(begin(), PLANS)
    assert (shared(first), shared(second)) == ([False] * 4, [True] * 4)
    assert [t.seconds for t in first] == [t.seconds for t in second]
    assert len(executor.begun) == 4


def test_another_plan_seed_or_past_is_trained(executor: FakeExecutor, records: Records) -> None:
    runner = SharingRunner(slices(executor), records)
    asked(runner, [PLAN])
    others = [(begin(), plan(0.002)), (begin(1), PLAN), (after(begin(), [PLAN]), PLAN)]
    for run, its_plan in others:
        epochs = asked(runner, [its_plan], run)
        assert [t.record for t in epochs] == told(run, [its_plan])
        assert shared(epochs) == [False]
    assert len(executor.begun) == 4


def test_known_epochs_need_no_tensors_until_somebody_trains_beyond_them(
    executor: FakeExecutor, records: Records
) -> None:
    """The records outlive the states: another process, or a budget that was spent."""
    asked(SharingRunner(slices(executor), records), PLANS[:3])
    orders = len(executor.orders)
    runner = SharingRunner(slices(executor), records)  # with no states
    assert shared(asked(runner, PLANS[:3])) == [True] * 3
    assert len(executor.orders) == orders
    epochs = asked(runner, PLANS)
    assert [t.record for t in epochs] == told(begin(), PLANS)
    assert shared(epochs) == [True, True, True, False]
    assert [order.again for order in executor.orders[orders:]] == [3]


def test_between_epochs_of_its_own_it_takes_what_others_trained(
    executor: FakeExecutor, records: Records
) -> None:
    for run in (after(begin(), PLANS[:1]), after(begin(), PLANS[:3])):
        record = run.history[-1]
        records.put(run.key, outcome_of(record), 1.5)
    epochs = asked(SharingRunner(slices(executor), records), PLANS)
    assert [t.record for t in epochs] == told(begin(), PLANS)
    assert shared(epochs) == [True, False, True, False]


def test_a_divergence_is_known_and_ends_the_request(
    executor: FakeExecutor, records: Records
) -> None:
    runner = SharingRunner(slices(executor), records)
    plans = [PLAN, plan(WILD), PLAN]
    for expected in ([False] * 2, [True] * 2):
        epochs = asked(runner, plans)
        assert [t.record for t in epochs] == told(begin(), plans[:2])
        assert shared(epochs) == expected
    run = after(begin(), plans[:2])
    assert [t.record for t in asked(runner, [PLAN], run)] == told(run, [PLAN])


def test_without_a_memory_it_is_trained_again_to_the_same_bits(executor: FakeExecutor) -> None:
    forgetful = Records()
    forgetful.close()
    runner = SharingRunner(slices(executor), forgetful)
    for _ in range(2):
        assert [t.record for t in asked(runner, PLANS)] == told(begin(), PLANS)
    assert len(executor.begun) == 8


def test_a_failure_is_not_remembered(executor: FakeExecutor, records: Records) -> None:
    runner = SharingRunner(slices(executor), records)
    _fails_once(executor, ArithmeticError("once"))
    with pytest.raises(WorkerFailed, match="once"):
        asked(runner, PLANS)
    assert [t.record for t in asked(runner, PLANS)] == told(begin(), PLANS)


def test_a_full_queue_is_told_and_claims_nothing(executor: FakeExecutor, records: Records) -> None:
    inner = slices(executor, cores=1, max_waiting=0)
    runner = SharingRunner(inner, records)
    with inner.cores.lend(), pytest.raises(QueueFull):
        asked(runner, PLANS)
    assert len(asked(runner, PLANS)) == 4


def test_equal_runs_are_graded_once(executor: FakeExecutor, records: Records) -> None:
    runner = SharingRunner(slices(executor), records)
    one, other = after(begin(), PLANS[:1]), after(begin(), PLANS[:2])
    asked(runner, PLANS[:2])
    _fails_once(executor, ArithmeticError("once"))
    with pytest.raises(WorkerFailed):
        runner.test_accuracy(one)
    executor.begun.clear()
    grades = [runner.test_accuracy(run) for run in (one, one, other, other)]
    assert grades == [grade(one.key)] * 2 + [grade(other.key)] * 2
    assert [epoch for _, epoch in executor.begun if epoch == 0] == [0, 0]


def test_what_another_process_trained_and_graded_is_known(
    executor: FakeExecutor, tmp_path: Path
) -> None:
    run = after(begin(), PLANS)
    for expected in ([False] * 4, [True] * 4):
        with closing(Records(tmp_path / "records.sqlite")) as records:
            runner = SharingRunner(slices(executor), records)
            epochs = asked(runner, PLANS)
            assert [t.record for t in epochs] == list(run.history)
            assert shared(epochs) == expected
            assert runner.test_accuracy(run) == grade(run.key)
    assert len(executor.begun) == 5


# Verified -------------------------------------------------------------------------------------


def test_verification_trains_the_sample_again(executor: FakeExecutor, records: Records) -> None:
    asked(SharingRunner(slices(executor), records), PLANS)
    for verify, expected in ((0.0, []), (1.0, [1, 2, 3, 4])):
        executor.begun.clear()
        runner = SharingRunner(SliceRunner(executor, Cores(1, 1), States(10**9)), records, verify)
        epochs = asked(runner, PLANS)
        assert [t.record for t in epochs] == told(begin(), PLANS)
        assert shared(epochs) == [True] * 4
        assert sorted({epoch for _, epoch in executor.begun}) == expected


def test_the_sample_is_as_large_as_was_asked_and_always_the_same(executor: FakeExecutor) -> None:
    def sample() -> list[tuple[int, int]]:
        with closing(Records()) as records:
            runner = SharingRunner(slices(executor), records, verify=0.25)
            for _ in range(2):
                executor.begun.clear()
                for seed in range(200):
                    asked(runner, [PLAN], begin(seed))
            return list(executor.begun)

    verified = sample()
    assert 30 <= len(verified) <= 70
    assert sample() == verified


@pytest.mark.parametrize("metric", range(len(METRICS)))
def test_a_known_epoch_with_another_bit_is_found_out(
    executor: FakeExecutor, records: Records, metric: int
) -> None:
    run = after(begin(), [PLAN])
    values = list(outcome_of(run.history[-1]).metrics)
    values[metric] = math.nextafter(values[metric] or 0.0, 1)
    records.put(run.key, orders.Outcome(tuple(values)), 1.0)
    with pytest.raises(SharedEpochMismatch, match="epoch 1 of mnist, seed 0"):
        asked(SharingRunner(slices(executor), records, verify=1.0), [PLAN])
    with pytest.raises(SharedEpochMismatch, match=METRICS[metric]):  # whoever trains beyond it
        asked(SharingRunner(slices(executor), records), [PLAN] * 2)


# Settings -------------------------------------------------------------------------------------


def test_a_switch_turns_it_off(executor: FakeExecutor) -> None:
    alone = process.runner_on(executor, Settings(sharing=False))
    for _ in range(2):
        assert [t.shared for t in alone.train(begin(), PLANS)] == [False] * 4
    assert len(executor.begun) == 8
    runner = process.runner_on(executor, Settings())
    assert isinstance(runner, SharingRunner)
    runner.records.close()
    assert Settings.from_environment({"ML_TRAINER_SHARING": "off"}) == Settings(sharing=False)


# On the real engine, through the environment ----------------------------------------------------

PREFIX = (configure(optimizer="sgd", learning_rate=0.05), train(2))


def _play(runner: Any, *moves: Any) -> tuple[Player, Outcome]:
    player = Player(runner=runner, states=engine())
    return player, player.do(*moves)


def _seen(outcome: Outcome) -> list[Any]:
    """All that the agent learns."""
    return [
        (status, observation.reward)
        for status, observation in zip(outcome.statuses, outcome.seen, strict=True)
    ]


def test_a_shared_episode_is_the_one_that_was_trained(records: Records) -> None:
    """With every shared epoch trained again and compared."""
    runner = SharingRunner(engine(), records, verify=1.0)
    moves = (*PREFIX, rate(0.01), train(1), SUBMIT)
    _, alone = _play(engine(), *moves)
    first, one = _play(runner, *moves)
    second, other = _play(runner, *moves)
    assert first.env.state.epochs_shared == 0
    assert second.env.state.epochs_shared == 3
    assert _seen(other) == _seen(one) == _seen(alone)
    assert value(other.tensors) == value(one.tensors) == value(alone.tensors)


def test_after_a_shared_prefix_sessions_go_their_own_ways(records: Records) -> None:
    runner = SharingRunner(engine(), records)
    first, _ = _play(runner, *PREFIX)
    second, _ = _play(runner, *PREFIX)
    endings = {first: rate(0.01), second: rate(0.002)}
    for player, change in endings.items():
        outcome = player.do(change, train(1))
        _, alone = _play(engine(), *PREFIX, change, train(1))
        assert value(outcome.tensors) == value(alone.tensors)
    assert (first.env.state.epochs_shared, second.env.state.epochs_shared) == (0, 2)


def test_sessions_at_the_same_time_train_each_epoch_once(records: Records) -> None:
    counted = _Counting()
    runner = SharingRunner(counted, records)
    with ThreadPoolExecutor(4) as pool:
        played = list(pool.map(partial(_play, runner), *zip(*[PREFIX] * 4, strict=True)))
    assert counted.epochs == 2
    assert len({value(outcome.tensors) for _, outcome in played}) == 1
    assert sum(player.env.state.epochs_shared for player, _ in played) == 6


class _Counting:
    """The engine, and how many epochs it was asked for."""

    def __init__(self) -> None:
        self.engine = engine().engine
        self.test_accuracy = engine().test_accuracy
        self.epochs = 0

    def train(
        self, run: Run, plans: Sequence[Plan], asker: Asker | None = None
    ) -> Generator[Trained]:
        for each in engine().train(run, plans, asker):
            self.epochs += 1
            yield each


def _fails_once(executor: FakeExecutor, error: Exception) -> None:
    def fail(*_: object) -> None:
        executor.trouble = lambda order, epoch: None
        raise error

    executor.trouble = fail
