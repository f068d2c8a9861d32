"""Inspect AI evaluates on it, and its log says what happened."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest
from adapted import inspected, plain
from inspect_ai.log import read_eval_log

from ml_trainer_env.adapters.inspect import CALL, training
from ml_trainer_env.agents.moves import SUBMIT, configure, run

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the library are not ours

MOVES = [configure(learning_rate=0.01), run(20), run(0), run(5), SUBMIT]


def test_the_log_has_the_episode_and_its_grade(url: str, tmp_path: Path) -> None:
    log = inspected(url, "medium_fashion", 2, MOVES, log_dir=str(tmp_path))

    kept = read_eval_log(log.location)
    assert kept.status == "success"
    (sample,) = kept.samples or []
    assert sample.id == "medium_fashion seed 2"
    assert sample.scores is not None
    score = sample.scores["final_score"]
    expected = plain(url, "medium_fashion", 2, MOVES)
    assert score.value == expected.score > 0
    assert (score.explanation or "").startswith("Score ")
    assert score.metadata is not None
    assert score.metadata["hidden_test_accuracy"] == 0.8125
    assert score.metadata["episode_return"] == expected.episode_return
    assert kept.results is not None
    assert kept.results.scores[0].metrics["mean"].value == expected.score
    told = [message.text for message in sample.messages if message.role == "tool"]
    assert told[0].startswith("configured learning_rate=0.01")
    assert told[1].startswith("trained 20 epochs")
    assert told[-1].startswith("The episode is over.")
    statuses = sample.store["Episode:statuses"]
    assert [status["current_epoch"] for status in statuses] == [0, 20, 25, 25]


def test_a_model_that_only_talks_is_asked_for_a_call_and_graded_at_the_limit(
    url: str, tmp_path: Path
) -> None:
    log = inspected(url, "easy_mnist", 0, [], log_dir=str(tmp_path))

    (sample,) = log.samples or []
    assert sample.limit is not None
    assert sample.limit.type == "message"
    assert CALL in [message.text for message in sample.messages]
    assert sample.scores is not None
    assert sample.scores["final_score"].value == 0


def test_samples_are_tasks_times_seeds() -> None:
    named = ["varied_mlp/eval/3-4", "easy_mnist"]  # so Inspect's command line has it
    assert [sample.id for sample in training(tasks=named).dataset][1] == "varied_mlp/eval/4 seed 0"

    samples = training(tasks="varied_mlp/eval/3-4, easy_mnist", seeds=2).dataset
    assert [sample.id for sample in samples] == [
        "varied_mlp/eval/3 seed 0",
        "varied_mlp/eval/3 seed 1",
        "varied_mlp/eval/4 seed 0",
        "varied_mlp/eval/4 seed 1",
        "easy_mnist seed 0",
        "easy_mnist seed 1",
    ]


def test_inspect_finds_the_task_by_its_entry_point() -> None:
    (found,) = entry_points(group="inspect_ai", name="ml_trainer_env")
    assert found.load().training is training
