"""Orders carried out in this process: the engine's bits, and slices that end where they should."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from executors import PLAN, plan
from real import inline, tensors_of
from states import begin, small, value

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import trainer
from ml_trainer_env.server.engine import varied
from ml_trainer_env.server.engine.team import Team
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.runtime import state_files
from ml_trainer_env.server.runtime.inline import Inline
from ml_trainer_env.server.runtime.jobs import Computer
from ml_trainer_env.server.runtime.orders import Answer, Order, Told, outcome_of
from ml_trainer_env.server.runtime.runner import Answers, SliceRunner
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.trainer import TrainingState

PLANS = [PLAN, plan(0.01), PLAN]


@pytest.fixture(autouse=True)
def _little_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varied, "resident", small)


def advanced(state: TrainingState, plans: list[EpochPlan]) -> TrainingState:
    for each in plans:
        state = trainer.advance(state, each)
    return state


def trained(runner: SliceRunner, run: Run, plans: list[EpochPlan]) -> Run:
    for each in runner.train(run, plans):
        run = run.after(each.record)
    return run


# The engine's bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", TASKS)
def test_whoever_runs_it_the_bits_are_the_engines(task_id: str) -> None:
    starts = [begin(task_id, seed) for seed in range(4)]
    expected = [advanced(start, PLANS) for start in starts]
    runner = inline(threads=2, cores=2)

    def train(start: TrainingState) -> Run:
        return trained(runner, start.run, PLANS)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(train, starts))
    runs = [state.run for state in expected]
    assert together == runs
    assert [value(tensors_of(run, runner)) for run in runs] == list(map(value, expected))
    assert [*map(train, starts)] == runs  # alone, on two threads
    assert runner.test_accuracy(runs[0]) == trainer.test_accuracy(expected[0])


def test_without_room_for_states_the_bits_are_the_same() -> None:
    start = begin("easy_mnist", 5)
    expected = advanced(start, PLANS)
    runner = inline(budget=0)
    run = start.run
    for each in PLANS:  # each of them trains all that came before again, and compares
        run = trained(runner, run, [each])
    assert run == expected.run
    assert runner.test_accuracy(run) == trainer.test_accuracy(expected)


def test_a_failing_part_waits_for_the_others() -> None:
    finished = threading.Event()

    def part(number: int) -> None:
        if number == 0:
            raise ZeroDivisionError
        time.sleep(0.2)  # still computing when the other part fails
        finished.set()

    team = Team(2)
    with pytest.raises(ZeroDivisionError):
        team.map(part, [0, 1])
    assert finished.is_set()
    team.close()


# One order ------------------------------------------------------------------------------------


def order(start: TrainingState, plans: list[EpochPlan], **rest: object) -> Order:
    about = {"workload": start.run.workload, "seed": start.run.seed, "precision": "fp32"}
    ample = {"seconds": 1e9, "state": None}
    return Order(**{**about, **ample, "plans": tuple(plans), **rest})


def carried_out(
    computer: Computer, given: Order, file: int | None = None, stop_after: int = 100
) -> list[Answer]:
    """All answers; after so many of them the order is stopped. Files are closed."""
    answers: list[Answer] = []
    for told in computer.perform(given, file, lambda: len(answers) >= stop_after):
        answers.append(told.answer)
        if told.file is not None:
            os.close(told.file)
    assert [answer.last for answer in answers] == [False] * (len(answers) - 1) + [True]
    return answers


@pytest.fixture
def start() -> TrainingState:
    return begin("easy_mnist", 0)


def test_each_epoch_is_told_and_the_last_with_its_state(start: TrainingState) -> None:
    expected = advanced(start, PLANS)
    answers = carried_out(Computer(), order(start, PLANS, grade=True))
    assert [a.outcome for a in answers] == [outcome_of(r) for r in expected.run.history]
    assert all(a.seconds > 0 for a in answers)
    assert [a.key for a in answers] == [None, None, expected.key]
    assert answers[-1].test_accuracy == trainer.test_accuracy(expected)


def test_a_slice_ends_when_its_time_is_over(start: TrainingState) -> None:
    for at_least in (1, 2):
        given = order(start, PLANS, seconds=0.0, at_least=at_least)
        assert len(carried_out(Computer(), given)) == at_least


def test_stopped_the_epoch_in_progress_is_the_last(start: TrainingState) -> None:
    assert len(carried_out(Computer(), order(start, PLANS * 3), stop_after=1)) == 2


def test_a_divergence_ends_it_unless_it_was_known(start: TrainingState) -> None:
    wild = plan(1e9).model_copy(update={"optimizer": "sgd"})
    plans = [PLAN, wild, PLAN]
    computer = Computer()
    assert len(carried_out(computer, order(start, plans))) == 2
    assert isinstance(computer.held, TrainingState)
    assert computer.held.current is computer.held.best_checkpoint
    assert value(computer.held) == value(advanced(start, plans[:2]))
    assert len(carried_out(Computer(), order(start, plans, again=2))) == 3


def test_a_state_that_is_held_is_not_read(start: TrainingState) -> None:
    """And may be left in several ways, if another has not pushed it out."""
    computer = Computer()
    first = advanced(start, [PLAN])
    carried_out(computer, order(start, [PLAN]))
    carried_out(computer, order(start, [plan(0.01)], state=first.key))  # without a file
    with pytest.raises(AssertionError, match="is given"):
        computer._state(order(start, [], state=first.key), None)
    size, file = state_files.write(first, None)
    assert size
    assert file is not None
    carried_out(computer, order(start, [plan(0.02)], state=first.key), file)
    os.close(file)
    assert computer.held is not None
    assert value(computer.held) == value(advanced(start, [PLAN, plan(0.02)]))


def test_a_state_comes_and_goes_as_bytes_where_it_is_kept_elsewhere(start: TrainingState) -> None:
    computer, again = Computer(in_files=False), Computer(in_files=False)
    told = list(computer.perform(order(start, [PLAN]), None, lambda: False))
    assert [each.file for each in told] == [None]
    answer, content = told[-1].answer, told[-1].content
    assert content is not None
    assert (answer.key, answer.size) == (advanced(start, [PLAN]).key, len(content))
    on = order(start, [plan(0.01)], state=answer.key)
    assert list(again.perform(on, content, lambda: False))[-1].answer.outcome
    assert again.held is not None
    assert value(again.held) == value(advanced(start, [PLAN, plan(0.01)]))
    for wrong in (content[:-1], content[:100], b""):
        (said,) = Computer(in_files=False).perform(on, wrong, lambda: False)
        assert said.answer.unreadable
    other = order(start, [PLAN], state="another key")
    (said,) = Computer(in_files=False).perform(other, content, lambda: False)
    assert said.answer.unreadable


def test_a_file_that_is_no_state_is_said_to_be_none(start: TrainingState, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"")
    with damaged.open("rb") as file:
        answers = carried_out(Computer(), order(start, PLANS, state="key"), file.fileno())
    assert answers == [Answer(last=True, unreadable=True)]


def test_a_full_disk_costs_only_the_file(start: TrainingState, tmp_path: Path) -> None:
    computer = Computer()
    (answer,) = carried_out(computer, order(start, [PLAN], folder=str(tmp_path / "gone")))
    expected = advanced(start, [PLAN])
    assert (answer.key, answer.size, answer.error) == (expected.key, None, None)
    assert answer.outcome == outcome_of(expected.run.history[0])
    assert computer.held is not None
    assert value(computer.held) == value(expected)


def test_what_the_engine_raises_is_the_last_answer(start: TrainingState) -> None:
    impossible = PLAN.model_copy(update={"batch_size": 0})
    answers = carried_out(computer := Computer(), order(start, [PLAN, impossible]))
    assert answers[0].outcome
    assert "Traceback" in (answers[1].error or "")
    assert computer.held is None


# Who computes ---------------------------------------------------------------------------------


def test_a_training_goes_on_where_its_state_is_held(start: TrainingState) -> None:
    executor, first = Inline(), advanced(start, [PLAN])
    with (
        executor.perform(order(start, [PLAN]), None) as one,
        executor.perform(order(begin("easy_mnist", 1), [PLAN]), None) as other,
    ):
        for answers in (one, other):
            _close(next(answers))
    assert len(executor._idle) == 2
    with executor.perform(order(start, [PLAN], state=first.key), None) as answers:  # no file
        told = next(answers)
        _close(told)
    assert told.answer.key == advanced(first, [PLAN]).key


def test_whoever_leaves_in_the_middle_gives_the_rest_up(start: TrainingState) -> None:
    executor = Inline()
    with executor.perform(order(start, PLANS), None) as answers:
        assert not next(answers).answer.last
    with executor.perform(order(start, PLANS), None) as answers:
        told = list(_all(answers))
    assert len(told) == 3
    assert len(executor._idle) == 1


def _all(answers: Answers) -> Iterator[Answer]:
    ended = False
    while not ended:
        told = answers.__next__()
        _close(told)
        ended = told.answer.last
        yield told.answer


def _close(told: Told) -> None:
    if told.file is not None:
        os.close(told.file)
