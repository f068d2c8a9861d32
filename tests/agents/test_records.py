"""Records: whole or not at all, readable by anyone, and played again bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from fakes import FakeRunner
from real import engine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ml_trainer_env.agents import catalogue, records, replay
from ml_trainer_env.agents.attempt import Attempt, Observer, Refused
from ml_trainer_env.agents.curves import TensorBoardCurves
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.records import BadRecord, Called, Record, RecordWriter
from ml_trainer_env.agents.session import RemoteSession
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime.runner import Runner
from ml_trainer_env.task_ids import TaskId


def sessions(runner: Runner | FakeRunner) -> Callable[[], LocalSession]:
    return lambda: LocalSession(MLTrainerEnvironment(runner))


def recorded(
    path: Path,
    name: str,
    runner: Runner | FakeRunner,
    task_id: TaskId = "easy_mnist",
    *observers: Observer,
) -> Record:
    with (
        RecordWriter(path) as writer,
        Attempt(name, sessions(runner), task_id, 7, [writer, *observers]) as attempt,
    ):
        catalogue.find(name)(attempt)
    return records.read(path)


def test_a_record_is_json_lines_that_need_no_package(tmp_path: Path, runner: FakeRunner) -> None:
    path = tmp_path / "new folder" / "naive.jsonl"
    record = recorded(path, "naive", runner)
    lines = [json.loads(text, parse_constant=pytest.fail) for text in path.read_text().splitlines()]
    assert [line["kind"] for line in lines[:3]] == ["attempt", "session", "call"]
    first, *_, last = lines
    assert (first["agent"], first["task_id"], first["seed"]) == ("naive", "easy_mnist", 7)
    assert (first["task_version"], first["engine"], first["max_epochs"]) == (2, "fake", 100)
    assert last["grade"]["score"] == record.end.grade.score
    calls = [line for line in lines if line["kind"] == "call"]
    assert calls[0]["arguments"] == {
        "optimizer": "adam",
        "learning_rate": 0.001,
        "batch_size": 64,
    }
    for call in calls:
        assert sum(call["status"]["reward_terms"].values()) == pytest.approx(
            call["status"]["reward"]
        )
    rewards = sum(call["status"]["reward"] for call in calls)
    assert last["episode_return"] == pytest.approx(rewards)


def test_an_attempt_that_is_cut_off_leaves_no_record(tmp_path: Path, runner: FakeRunner) -> None:
    path = tmp_path / "cut.jsonl"
    with (  # noqa: PT012 - the block is what is cut off
        pytest.raises(ZeroDivisionError),
        RecordWriter(path) as writer,
        Attempt("mine", sessions(runner), "easy_mnist", 0, [writer]) as attempt,
    ):
        attempt.begin().call("configure_training")
        raise ZeroDivisionError
    assert not path.exists()
    assert list(records.find(tmp_path)) == []
    [part] = tmp_path.iterdir()
    assert len(part.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: [], "has 0 lines"),
        (lambda lines: lines[:-1], "ends with an end line"),
        (lambda lines: lines[1:], "begins with an attempt line"),
        (lambda lines: ["not JSON", *lines], "Invalid JSON"),
        (lambda lines: [lines[0].replace('"format":2', '"format":3'), *lines[1:]], "format"),
    ],
)
def test_a_broken_record_is_refused_by_name(
    change: Callable[[list[str]], list[str]], told: str, tmp_path: Path, runner: FakeRunner
) -> None:
    path = tmp_path / "naive.jsonl"
    recorded(path, "naive", runner)
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with pytest.raises(BadRecord, match=rf"naive\.jsonl: .*{told}"):
        records.read(path)


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadRecord, match="No such file"):
        records.read(tmp_path / "none.jsonl")


# Replay -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "expert", "halving"])
def test_a_record_played_again_is_the_same(
    name: str, tmp_path: Path, runner: FakeRunner, url: str
) -> None:
    record = recorded(tmp_path / "r.jsonl", name, runner)
    assert replay.verify(record, sessions(runner)) == []
    assert replay.verify(record, partial(RemoteSession, url)) == []


def test_refusals_and_remarks_are_played_again_too(tmp_path: Path, runner: FakeRunner) -> None:
    path = tmp_path / "r.jsonl"
    with (
        RecordWriter(path) as writer,
        Attempt("mine", sessions(runner), "easy_mnist", 0, [writer]) as attempt,
    ):
        trial = attempt.begin()
        attempt.remark("what a lovely day")
        with pytest.raises(Refused):
            trial.run(99)
        trial.call("submit_model")
    record = records.read(path)
    assert record.end.errors == 1
    assert replay.verify(record, sessions(runner)) == []


def test_what_differs_is_named(tmp_path: Path, runner: FakeRunner) -> None:
    record = recorded(tmp_path / "r.jsonl", "naive", runner)

    other = replay.verify(record, sessions(FakeRunner(lambda e, p: (1.0 / e, 0.5, 0.0))))
    assert any("run_epochs: status.val_accuracy was" in difference for difference in other)
    assert any(difference.startswith(f"line {len(record.lines) + 2}, end") for difference in other)


def test_another_engine_is_a_difference(tmp_path: Path, runner: FakeRunner) -> None:
    record = recorded(tmp_path / "r.jsonl", "nothing", runner)
    old = record.model_copy(
        update={"header": record.header.model_copy(update={"engine": "of last year"})}
    )
    [difference] = replay.verify(old, sessions(runner))
    assert difference == "line 1, attempt: engine was 'of last year', is 'fake'"


def test_a_record_of_an_older_task_is_refused_before_anything_is_trained(
    tmp_path: Path, runner: FakeRunner
) -> None:
    record = recorded(tmp_path / "r.jsonl", "naive", runner)
    older = record.header.model_copy(update={"task_version": 1})
    untouched = FakeRunner()
    with pytest.raises(replay.OtherVersion, match="version 1 of easy_mnist, and this is version 2"):
        replay.verify(record.model_copy(update={"header": older}), sessions(untouched))
    assert untouched.advanced == 0


@pytest.mark.parametrize("name", ["naive", "random"])
def test_on_the_engine_a_record_is_replayed_bit_for_bit(name: str, tmp_path: Path) -> None:
    record = recorded(tmp_path / "r.jsonl", name, engine())
    assert record.header.engine is not None
    assert "torch" in record.header.engine
    assert any(c.status and c.status.val_loss for c in record.lines if isinstance(c, Called))
    assert replay.verify(record, sessions(engine())) == []


# TensorBoard --------------------------------------------------------------------------------------


def test_curves_have_every_epoch_however_long_the_calls(tmp_path: Path, runner: FakeRunner) -> None:
    curves = TensorBoardCurves(tmp_path)

    env = MLTrainerEnvironment(runner)
    with Attempt("long", lambda: LocalSession(env), "hard_cifar", 5, [curves]) as attempt:
        trial = attempt.begin()
        trial.call("configure_training")
        for epochs in (20, 1, 20):
            trial.run(epochs)
        assert env.episode
        history = env.episode.now.training.history
        trial.call("submit_model")
    for tag, name in (("loss/val", "val_loss"), ("accuracy/val", "val_accuracy")):
        assert drawn(tmp_path / "session-0", tag) == {
            record.epoch: pytest.approx(getattr(record, name)) for record in history
        }


def test_an_attempt_that_is_played_again_replaces_its_curves(
    tmp_path: Path, runner: FakeRunner
) -> None:
    curves = TensorBoardCurves(tmp_path)
    with Attempt("cut off", sessions(runner), "hard_cifar", 5, [curves]) as cut_off:
        trial = cut_off.begin()
        trial.call("configure_training")
        trial.run(13)
    recorded(tmp_path / "r.jsonl", "naive", runner, "hard_cifar", TensorBoardCurves(tmp_path))
    assert list(drawn(tmp_path / "session-0", "loss/val")) == list(range(1, 61))


def drawn(folder: Path, tag: str) -> dict[int, float]:
    """A curve by epoch; TensorBoard itself reads all files of a folder."""
    accumulator = EventAccumulator(str(folder), {"tensors": 0}, purge_orphaned_data=False).Reload()
    events = accumulator.Tensors(tag)
    steps = [event.step for event in events]
    assert steps == sorted(set(steps)), "the curve jumps back"
    return {event.step: event.tensor_proto.float_val[0] for event in events}
