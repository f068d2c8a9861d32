"""Replays: a record as the story of its episode, call by call, and nothing but records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeRunner
from play import record
from real import engine

from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.records import RecordWriter
from ml_trainer_env.server.desk import lanes, recorded
from ml_trainer_env.server.desk.recorded import NoRecord
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment

OPERATED: list[tuple[str, dict[str, Any]]] = [
    ("run_epochs", {"num_epochs": 1}),
    ("run_diagnostic", {"kind": "weight_checksum"}),
    ("restore_checkpoint", {"step": 20, "skip_batches": 2}),
    ("configure_ranks", {"exclude": [2], "use_spare": [1]}),
    ("configure_data", {"quarantine_shards": [3], "reshuffle": True}),
    ("adjust_learning_rate", {"new_lr": 0.003}),
    ("get_training_status", {}),
    ("run_epochs", {"num_epochs": 1}),
    ("submit_model", {}),
]


@pytest.fixture
def folder(tmp_path: Path, runner: FakeRunner) -> Path:
    for agent in ("expert", "reference", "halving"):
        record(tmp_path / "night" / f"{agent}.jsonl", agent, runner)
    return tmp_path


@pytest.mark.parametrize("agent", ["naive", "expert", "reference"])
def test_a_replay_knows_every_epoch(tmp_path: Path, runner: FakeRunner, agent: str) -> None:
    [episode] = record(tmp_path / "one.jsonl", agent, runner)
    assert episode is not None
    history = episode.now.training.history
    last = recorded.open_record(tmp_path, "one").moments[-1]
    assert last.points == history
    assert last.status.grade is not None


def test_a_replay_goes_call_by_call(folder: Path) -> None:
    moments = recorded.open_record(folder, "night/expert").moments
    assert [len(story.played) for story in moments] == list(range(len(moments)))
    assert moments[0].points == ()
    assert not [story for story in moments[:-1] if story.status.grade]


def test_a_replay_of_a_search_follows_the_forks_to_what_was_submitted(folder: Path) -> None:
    found = recorded.open_record(folder, "night/halving")
    last = found.moments[-1]
    assert last.status == next(
        line.status for line in reversed(found.record.calls) if line.status is not None
    )
    assert [point.epoch for point in last.points] == [*range(1, last.status.current_epoch + 1)]


def test_a_replay_of_a_cluster_knows_what_its_operator_did(tmp_path: Path) -> None:
    env = MLTrainerEnvironment(engine())
    with (
        RecordWriter(tmp_path / "one.jsonl") as writer,
        Attempt("me", lambda: LocalSession(env), "cluster/eval/4", 0, [writer]) as attempt,
    ):
        trial = attempt.begin()
        for tool, arguments in OPERATED:
            trial.call(tool, **arguments)
        assert env.episode is not None
        history = env.episode.now.training.history
    last = recorded.open_record(tmp_path, "one").moments[-1]
    seen, was = lanes.spans(last.points), lanes.spans(history)
    assert [type(span.record.plan) for span in seen] == [type(span.record.plan) for span in was]
    assert [span.end for span in seen] == pytest.approx([span.end for span in was], rel=1e-3)
    assert [(mark.kind, mark.text, mark.finding) for mark in lanes.marks(seen)] == [
        (mark.kind, mark.text, mark.finding) for mark in lanes.marks(was)
    ]
    for stretches in (lanes.absences, lanes.quarantines):
        assert [each.row for each in stretches(seen)] == [each.row for each in stretches(was)]
    assert [span.report.step for span in seen] == [span.report.step for span in was]


def test_records_are_listed_the_newest_first(folder: Path) -> None:
    assert set(recorded.names(folder)) == {"night/expert", "night/reference", "night/halving"}
    assert recorded.names(folder / "nowhere") == []


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "night/../../secret", "night", ""])
def test_nothing_outside_the_folder_is_opened(folder: Path, name: str) -> None:
    with pytest.raises(NoRecord, match="one of the list"):
        recorded.open_record(folder / "night", name)


def test_a_broken_record_is_an_error_without_its_path(folder: Path) -> None:
    (folder / "broken.jsonl").write_text("{}\n")
    with pytest.raises(NoRecord, match="not a whole record") as refused:
        recorded.open_record(folder, "broken")
    assert str(folder) not in str(refused.value)
