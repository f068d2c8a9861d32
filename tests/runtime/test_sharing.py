"""Shared prefixes: trained once for all who ask, with the bits of a real run, without a trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from live import eventually
from real import Outcome, Player, engine
from states import PLAN, SmallEngine, plan, trained, untrained, value

from ml_trainer_env.agents.moves import SUBMIT, configure, rate, run
from ml_trainer_env.server.runtime.asking import Asker, CalledOff
from ml_trainer_env.server.runtime.runner import InlineRunner
from ml_trainer_env.server.runtime.sharing import SharedEpochMismatch, SharingRunner, shared
from ml_trainer_env.server.runtime.snapshots import Snapshots
from ml_trainer_env.server.settings import Settings
from ml_trainer_env.server.trainer import Checkpoint, TrainingState

ROOMY = 10**9


@pytest.fixture
def small() -> Iterator[SmallEngine]:
    small = SmallEngine()
    yield small
    small.gate.set()


def sharing(inner: Any, budget: int = ROOMY, verify: float = 0.0) -> SharingRunner:
    return SharingRunner(inner, Snapshots(budget), verify)


class Crowd:
    """Sessions that ask, each from a thread of its own."""

    def __init__(self, runner: SharingRunner, pool: ThreadPoolExecutor) -> None:
        self.runner, self.pool = runner, pool
        self.waiting = threading.Semaphore(0)

    def ask(self, state: TrainingState, asker: Asker) -> Future[TrainingState]:
        return self.pool.submit(self.runner.advance, state, PLAN, asker)

    def ask_and_wait(self, state: TrainingState, count: int) -> list[Future[TrainingState]]:
        """`count` sessions that wait for an epoch that another one trains."""
        askers = [Asker(self._note_waiting) for _ in range(count)]
        asked = [self.ask(state, asker) for asker in askers]
        for _ in range(count):
            assert self.waiting.acquire(timeout=20)
        return asked

    def _note_waiting(self) -> bool:
        self.waiting.release()
        return False


@pytest.fixture
def crowd(small: SmallEngine) -> Iterator[Crowd]:
    with ThreadPoolExecutor(16) as pool:
        yield Crowd(sharing(small), pool)
        small.gate.set()


# One after another ----------------------------------------------------------------------------


def test_what_was_trained_is_taken(small: SmallEngine) -> None:
    runner, start = sharing(small), untrained()
    first, second = Asker(), Asker()
    state = runner.advance(start, PLAN, first)
    assert runner.advance(start, PLAN, second) is state
    assert value(state) == value(trained(start, PLAN))
    assert len(small.begun) == 1
    assert (first.shared, second.shared) == (0, 1)


def test_another_plan_seed_or_past_is_trained(small: SmallEngine) -> None:
    runner, start = sharing(small), untrained()
    state = runner.advance(start, PLAN)
    others = [(start, plan(0.002)), (untrained(seed=1), PLAN), (state, PLAN)]
    for before, its_plan in others:
        asker = Asker()
        runner.advance(before, its_plan, asker)
        assert asker.shared == 0
    assert len(small.begun) == 4


def test_what_was_evicted_is_trained_again_to_the_same_bits(small: SmallEngine) -> None:
    runner, start = sharing(small, budget=0), untrained()
    states = [runner.advance(start, PLAN) for _ in range(2)]
    assert len(small.begun) == 2
    assert value(states[0]) == value(states[1])


def test_a_failure_is_not_remembered(small: SmallEngine) -> None:
    runner, start = sharing(small), untrained()
    small.failures = [ArithmeticError("once")]
    with pytest.raises(ArithmeticError):
        runner.advance(start, PLAN)
    assert value(runner.advance(start, PLAN)) == value(trained(start, PLAN))


def test_equal_states_are_graded_once(small: SmallEngine) -> None:
    runner, start = sharing(small), untrained()
    small.failures = [ArithmeticError("once")]
    with pytest.raises(ArithmeticError):
        runner.test_accuracy(start)
    states = [start, untrained(), trained(start, PLAN), trained(start, PLAN)]
    grades = [runner.test_accuracy(state) for state in states]
    assert grades == [SmallEngine().test_accuracy(state) for state in states]
    assert small.graded == [start.key, start.key, states[2].key]  # the first of them failed


# At the same time -----------------------------------------------------------------------------


def test_asked_for_at_the_same_time_it_is_trained_once(small: SmallEngine, crowd: Crowd) -> None:
    small.gate.clear()
    start, first = untrained(), Asker()
    leader = crowd.ask(start, first)
    eventually(lambda: small.begun)
    others = crowd.ask_and_wait(start, 7)
    small.gate.set()
    results = {id(asked.result(20)) for asked in [leader, *others]}
    assert len(results) == len(small.begun) == 1
    assert first.shared == 0


def test_graded_at_the_same_time_it_is_graded_once(small: SmallEngine) -> None:
    small.gate.clear()
    runner, together = sharing(small), threading.Barrier(4)

    def grade(_: int) -> float:
        together.wait(20)
        return runner.test_accuracy(untrained(seed=1))

    with ThreadPoolExecutor(4) as pool:
        grades = pool.map(grade, range(4))
        eventually(lambda: small.graded)
        small.gate.set()
        assert set(grades) == {1.0}
    assert len(small.graded) == 1


def test_without_any_memory_those_who_wait_are_still_served(small: SmallEngine) -> None:
    small.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        crowd = Crowd(sharing(small, budget=0), pool)
        leader = crowd.ask(untrained(), Asker())
        eventually(lambda: small.begun)
        others = crowd.ask_and_wait(untrained(), 3)
        small.gate.set()
        assert all(asked.result(20) is leader.result(20) for asked in others)
    assert len(small.begun) == 1


@pytest.mark.parametrize("failure", [ArithmeticError("worker"), CalledOff("client left")])
def test_when_the_one_who_trains_fails_another_takes_over(
    small: SmallEngine, crowd: Crowd, failure: Exception
) -> None:
    small.gate.clear()
    small.failures = [failure]
    leader = crowd.ask(untrained(), Asker())
    eventually(lambda: small.begun)
    others = crowd.ask_and_wait(untrained(), 5)
    small.gate.set()
    with pytest.raises(type(failure)):
        leader.result(20)
    assert {value(asked.result(20)) for asked in others} == {value(trained(untrained(), PLAN))}
    assert len(small.begun) == 2


def test_whoever_waits_can_leave_at_once_and_disturbs_nobody(
    small: SmallEngine, crowd: Crowd
) -> None:
    small.gate.clear()
    leader = crowd.ask(untrained(), Asker())
    eventually(lambda: small.begun)
    leaving = threading.Event()
    leaver = crowd.ask(untrained(), Asker(leaving.is_set))
    stayer = crowd.ask_and_wait(untrained(), 1)[0]
    leaving.set()
    with pytest.raises(CalledOff):
        leaver.result(5)  # while the gate is still closed
    small.gate.set()
    assert stayer.result(20) is leader.result(20)


def test_in_the_queue_for_a_core_one_can_leave_at_once() -> None:
    runner = InlineRunner(threads=1, cores=1)
    with runner._cores.lend(), pytest.raises(CalledOff):
        runner.advance(untrained(), PLAN, Asker(lambda: True))
    assert runner._cores.waiting == 0
    with runner._cores.lend(Asker(lambda: True)) as threads:  # a turn that comes at once is taken
        assert threads == 1


# Verified -------------------------------------------------------------------------------------


def test_verification_trains_the_sample_again(small: SmallEngine) -> None:
    for verify, expected in ((0.0, 1), (1.0, 2)):
        small.begun.clear()
        runner = sharing(small, verify=verify)
        asker = Asker()
        for _ in range(2):
            runner.advance(untrained(), PLAN, asker)
        assert len(small.begun) == expected
        assert asker.shared == 1


def test_the_sample_is_as_large_as_was_asked_and_always_the_same(small: SmallEngine) -> None:
    def sample() -> list[str]:
        runner = sharing(small, verify=0.25)
        for _ in range(2):
            small.begun.clear()
            for seed in range(200):
                runner.advance(untrained(seed=seed), PLAN)
        return list(small.begun)

    verified = sample()
    assert 30 <= len(verified) <= 70
    assert sample() == verified


def _with_weights(state: TrainingState) -> TrainingState:
    return replace(state, current=Checkpoint(state.current.weights + 1, state.current.statistics))


def _with_moments(state: TrainingState) -> TrainingState:
    return replace(state, moments=(state.moments[0], state.moments[1] * 2))


def _with_metrics(state: TrainingState) -> TrainingState:
    record = state.history[-1].model_copy(update={"val_loss": 0.1})
    return replace(state, history=(record,))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_with_weights, "weights"),
        (_with_moments, "moments 1"),
        (_with_metrics, "history"),
        (lambda state: replace(state, moments=()), "number of moments"),
        (lambda state: replace(state, steps=0), "steps"),
    ],
)
def test_a_stored_epoch_with_other_bits_is_found_out(
    small: SmallEngine, change: Callable[[TrainingState], TrainingState], named: str
) -> None:
    snapshots = Snapshots(ROOMY)
    snapshots.put(change(trained(untrained(), PLAN)))
    runner = SharingRunner(small, snapshots, verify=1.0)
    with pytest.raises(SharedEpochMismatch, match=named):
        runner.advance(untrained(), PLAN)


# Settings -------------------------------------------------------------------------------------


def test_a_switch_turns_it_off(small: SmallEngine) -> None:
    assert shared(small, Settings(sharing=False)) is small
    assert isinstance(shared(small, Settings()), SharingRunner)
    assert Settings.from_environment({"ML_TRAINER_SHARING": "off"}) == Settings(sharing=False)


# On the real engine, through the environment ----------------------------------------------------

PREFIX = (configure(optimizer="sgd", learning_rate=0.05), run(2))


def _play(runner: Any, *moves: Any) -> tuple[Player, Outcome]:
    player = Player(runner=runner)
    return player, player.do(*moves)


def _seen(outcome: Outcome) -> list[Any]:
    """All that the agent learns."""
    return [
        (status, observation.reward)
        for status, observation in zip(outcome.statuses, outcome.seen, strict=True)
    ]


def test_a_shared_episode_is_the_one_that_was_trained() -> None:
    """With every shared epoch trained again and compared."""
    runner = sharing(engine(), verify=1.0)
    moves = (*PREFIX, rate(0.01), run(1), SUBMIT)
    _, alone = _play(engine(), *moves)
    first, one = _play(runner, *moves)
    second, other = _play(runner, *moves)
    assert first.env.state.epochs_shared == 0
    assert second.env.state.epochs_shared == 3
    assert _seen(other) == _seen(one) == _seen(alone)
    assert value(other.training) == value(one.training) == value(alone.training)


def test_after_a_shared_prefix_sessions_go_their_own_ways() -> None:
    runner = sharing(engine())
    first, _ = _play(runner, *PREFIX)
    second, _ = _play(runner, *PREFIX)
    endings = {first: rate(0.01), second: rate(0.002)}
    for player, change in endings.items():
        outcome = player.do(change, run(1))
        _, alone = _play(engine(), *PREFIX, change, run(1))
        assert value(outcome.training) == value(alone.training)
    assert (first.env.state.epochs_shared, second.env.state.epochs_shared) == (0, 2)


def test_sessions_at_the_same_time_train_each_epoch_once() -> None:
    counted = _Counting(engine())
    runner = sharing(counted)
    with ThreadPoolExecutor(4) as pool:
        played = list(pool.map(partial(_play, runner), *zip(*[PREFIX] * 4, strict=True)))
    assert counted.epochs == 2
    assert len({value(outcome.training) for _, outcome in played}) == 1
    assert sum(player.env.state.epochs_shared for player, _ in played) == 6


class _Counting:
    def __init__(self, runner: InlineRunner) -> None:
        self._runner, self.epochs = runner, 0

    def advance(self, *arguments: Any) -> TrainingState:
        self.epochs += 1
        return self._runner.advance(*arguments)

    def test_accuracy(self, state: TrainingState) -> float:
        return self._runner.test_accuracy(state)

    def recall(self, key: str) -> TrainingState | None:
        return None
