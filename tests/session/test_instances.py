"""Instances through the environment: begun by their place, and silent on what they hide.

The doubles train nothing; what is real is in `tests/engine/test_varied.py` and `test_frozen.py`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from fakes import FakeRunner

from ml_trainer_env.frozen import measured, table
from ml_trainer_env.models import INSTANCE_TOOL_CALLS, MAX_SEED, TrainingStatus
from ml_trainer_env.server.doors.mcp import rules
from ml_trainer_env.server.families import candidate
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session.saved import SavedEpisodes
from ml_trainer_env.server.validation import ActionError
from ml_trainer_env.task_ids import (
    INSTANCES,
    SPLITS,
    VARIED,
    Family,
    InstanceId,
    Split,
    instance_id,
    instances,
    listed,
    named,
)

every_family = pytest.mark.parametrize("family", VARIED)


@pytest.fixture
def env(runner: FakeRunner) -> Iterator[MLTrainerEnvironment]:
    environment = MLTrainerEnvironment(runner, saved=SavedEpisodes())
    yield environment
    environment.close()


def inherited(family: Family, split: Split = "eval") -> str:
    """An instance whose run somebody else began."""
    return next(str(of) for of in instances(family, split) if task_of(str(of)).inherited)


def fresh(family: Family, split: Split = "eval") -> str:
    return next(str(of) for of in instances(family, split) if not task_of(str(of)).inherited)


def told(env: MLTrainerEnvironment, status: TrainingStatus) -> str:
    """All that any door shows."""
    return status.model_dump_json() + env.state.model_dump_json() + str(status)


@every_family
@pytest.mark.parametrize("split", SPLITS)
def test_reset_by_family_split_and_index(
    env: MLTrainerEnvironment, family: Family, split: Split
) -> None:
    by_place = env.reset(task_id=family, split=split, index=7, seed=3).status
    assert env.state.task_id == by_place.task_id == f"{family}/{split}/7"
    assert env.state.seed == 3
    again = env.reset(task_id=f"{family}/{split}/7", seed=3).status
    assert again == by_place
    place = listed(split).index(by_place.task_id)
    assert env.reset(split=split, index=place, seed=3).status == by_place


@every_family
def test_a_family_alone_draws_by_the_seed(env: MLTrainerEnvironment, family: Family) -> None:
    for seed in (0, 5, MAX_SEED):
        env.reset(task_id=family, seed=seed)
        assert env.state.task_id == f"{family}/train/{1000 + seed}"
        assert env.state.seed == seed


@every_family
def test_the_opening_message_is_a_card(env: MLTrainerEnvironment, family: Family) -> None:
    task = task_of(fresh(family))
    status = env.reset(task_id=task.task_id).status
    variation = task.workload.variation
    assert variation is not None
    assert f"{variation.images:,} " in status.message
    assert str(variation.shape)[3:] in status.message
    assert f"You have {status.remaining_budget} epochs" in status.message
    assert f"{INSTANCE_TOOL_CALLS} tool calls" in status.message
    assert status.tool_calls_left == INSTANCE_TOOL_CALLS
    assert (status.current_epoch, status.current_config) == (0, None)


@every_family
def test_a_run_is_taken_over_with_its_history_and_configuration(
    env: MLTrainerEnvironment, family: Family
) -> None:
    task = task_of(inherited(family))
    assert task.inherited is not None
    status = env.reset(task_id=task.task_id).status
    assert status.current_epoch == task.inherited.epochs
    assert status.remaining_budget == task.budget == task.max_epochs - task.inherited.epochs
    assert len(status.val_loss_history_last_10) == min(10, task.inherited.epochs)
    assert status.current_config is not None
    asked = task.inherited.config.model_dump()
    assert status.current_config.model_dump(include=set(asked)) == asked
    assert f"run of {task.inherited.epochs} epochs" in status.message
    assert status.reward == 0
    assert env.state.epochs_shared == 0
    went_on = env.call("run_epochs", {"num_epochs": 20})
    assert went_on.current_epoch == task.inherited.epochs + went_on.epochs_run


@every_family
def test_nothing_hidden_is_told_before_the_grade_and_all_of_it_then(
    env: MLTrainerEnvironment, family: Family
) -> None:
    """Looked for by name and by value, in every answer of an episode, errors included."""
    for of in [*instances(family, "eval")[:6], InstanceId(family, "train", 1234)]:
        task = task_of(str(of))
        scale = (task.scale.low, task.scale.high) if measured(of) else ()
        numbers = (task.hidden["multiplier"], *scale)
        values = [f"{number:g}" for number in numbers] + [repr(number) for number in numbers]
        words = ["label_noise", "recoloured", "moved", '"start"', '"low"', '"high"', "frozen"]
        secrets = [*values, *words, "estimated"]
        opened = env.reset(task_id=task.task_id).status
        seen = [told(env, opened), json.dumps(task.card), rules.rules("begin")]
        seen.append(rules.opening_move("begin", task.task_id, 0))
        for name, arguments in (
            ("configure_training", {"learning_rate": 0.7}),
            ("run_epochs", {"num_epochs": 3}),
            ("get_training_status", {}),
            ("toggle_augmentation", {"enabled": True}),
        ):
            seen.append(told(env, env.call(name, arguments)))
        with pytest.raises(ActionError) as wrong:
            env.call("run_epochs", {"num_epochs": 0})
        seen.append(str(wrong.value))
        inherited_run = task.inherited.config.model_dump_json() if task.inherited else ""
        for secret in secrets:
            if secret not in inherited_run:
                assert all(secret not in text for text in seen), secret
        grade = env.call("submit_model", {}).grade
        assert grade is not None
        assert grade.hidden == dict(task.hidden)
        assert grade.hidden["multiplier"] == candidate_of(of).variation.multiplier


def candidate_of(of: InstanceId) -> Any:
    line = measured(of)
    return candidate(of, line.candidate if line else 0)


@every_family
def test_the_grade_is_of_the_hidden_images(
    env: MLTrainerEnvironment, runner: FakeRunner, family: Family
) -> None:
    task_id = fresh(family)
    task = task_of(task_id)
    env.reset(task_id=task_id)
    env.call("configure_training", {})
    env.call("run_epochs", {"num_epochs": 2})
    status = env.call("submit_model", {})
    assert status.grade is not None
    (part,) = status.grade.components
    hidden = status.grade.hidden_test_accuracy
    assert hidden is not None
    assert part.inputs == {
        "hidden_test_accuracy": hidden,
        "low": task.scale.low,
        "high": task.scale.high,
    }
    expected = (hidden - task.scale.low) / (task.scale.high - task.scale.low)
    assert status.grade.score == pytest.approx(min(1.0, max(0.0, expected)))


@every_family
def test_nothing_trained_scores_nothing(env: MLTrainerEnvironment, family: Family) -> None:
    env.reset(task_id=fresh(family))
    grade = env.call("submit_model", {}).grade
    assert grade is not None
    assert (grade.score, grade.graded_epoch, grade.hidden_test_accuracy) == (0, None, None)


def test_the_twentieth_call_submits(env: MLTrainerEnvironment) -> None:
    env.reset(task_id=fresh("varied_mlp"))
    env.call("configure_training", {})
    status = env.call("run_epochs", {"num_epochs": 1})
    for number in range(3, INSTANCE_TOOL_CALLS + 1):
        status = env.call("adjust_learning_rate", {"new_lr": 0.001 * number})
    assert status.done
    assert status.grade is not None
    assert status.grade.submitted_by == "call_limit"
    assert "call 20 was the last" in status.message


@every_family
def test_a_fork_and_a_resumed_episode_go_on_where_the_run_stood(
    env: MLTrainerEnvironment, runner: FakeRunner, family: Family
) -> None:
    env.reset(task_id=inherited(family), seed=2)
    env.call("run_epochs", {"num_epochs": 2})
    key = env.state.key
    other = MLTrainerEnvironment(runner, saved=env._saved)
    try:
        forked = other.reset(fork_of=key).status
        assert forked.current_epoch == env.state.current_epoch
        assert other.state.task_id == env.state.task_id
        assert forked.tool_calls_left == INSTANCE_TOOL_CALLS - 1
        resumed = other.reset(resume=key).status
        assert resumed.val_loss_history_last_10 == forked.val_loss_history_last_10
    finally:
        other.close()


def test_another_seed_of_an_instance_is_another_attempt_at_the_same_secret(
    env: MLTrainerEnvironment, runner: FakeRunner
) -> None:
    """Its grade has told what it hides, whatever the seed; and a fork may know from its parent."""
    task_id = fresh("varied_mlp")
    for number, seed in enumerate((0, 1, 0, 7), 1):
        env.reset(task_id=task_id, seed=seed)
        grade = env.call("submit_model", {}).grade
        assert grade is not None
        assert grade.attempt == number
    env.reset(task_id=task_id, seed=9)
    other = MLTrainerEnvironment(runner, saved=env._saved)
    try:
        other.reset(fork_of=env.state.key)
        assert other.state.attempt == env.state.attempt == 5
    finally:
        other.close()


def test_a_reset_whose_client_is_gone_takes_over_no_run(
    env: MLTrainerEnvironment, runner: FakeRunner
) -> None:
    """Its training ends at the next epoch boundary, as every training does."""
    runner.gate.clear()
    failures: list[Exception] = []

    def reset() -> None:
        try:
            env.reset(task_id=inherited("varied_mlp"))
        except ActionError as error:
            failures.append(error)

    thread = threading.Thread(target=reset)
    thread.start()
    assert runner.started.acquire(timeout=15)
    env.close()
    runner.gate.set()
    thread.join(15)
    assert runner.advanced == 1
    assert len(failures) == 1


def test_the_old_training_has_ended_before_a_run_is_taken_over(
    env: MLTrainerEnvironment, runner: FakeRunner
) -> None:
    env.reset(task_id=fresh("varied_mlp"))
    env.call("configure_training", {})
    runner.gate.clear()

    def train() -> None:
        with suppress(ActionError):
            env.call("run_epochs", {"num_epochs": 20})

    training = threading.Thread(target=train)
    training.start()
    assert runner.started.acquire(timeout=15)
    resetting = threading.Thread(target=env.reset, kwargs={"task_id": inherited("varied_mlp")})
    resetting.start()
    runner.gate.set()
    for thread in (training, resetting):
        thread.join(15)
    assert runner.most_at_once == 1
    assert env.state.task_id == inherited("varied_mlp")


def test_an_endless_instance_is_graded_on_an_estimated_scale() -> None:
    lines = [line for (split, _), line in table("varied_mlp").items() if split == "train"]
    for index in (1000, 123456, 999_999_999):
        task = task_of(f"varied_mlp/train/{index}")
        assert task.hidden["scale"] == "estimated"
        assert min(line.low for line in lines) < task.scale.low < max(line.low for line in lines)
        assert min(line.high for line in lines) < task.scale.high < max(line.high for line in lines)
        assert task.scale.high - task.scale.low > 0.08
    assert task_of("varied_mlp/eval/0").hidden["scale"] == "frozen"


@every_family
@pytest.mark.parametrize("split", SPLITS)
def test_the_tasks_that_are_played_keep_to_what_is_held_out(family: Family, split: Split) -> None:
    """Of the candidates that were chosen by measuring, and in words of the test's own."""
    for of in instances(family, split):
        task = task_of(str(of))
        drawn = task.workload.variation
        assert drawn is not None
        smooth = {"activation='tanh'", "batch_norm=True"}
        kinds = [
            drawn.multiplier > 10 and drawn.shift in ("moved", "recoloured"),
            drawn.multiplier < 0.1 and drawn.label_noise > 0.3,
            task.inherited is not None and any(word in repr(drawn.shape) for word in smooth),
        ]
        if split == "eval" and of.index >= 24:
            assert kinds[of.index % 3]
        else:
            assert not any(kinds)
        assert task.workload.dataset.endswith(f"/{split}")
        assert drawn.name.startswith(f"{of}#")


def test_ids_and_places_are_the_same_thing() -> None:
    every = [task_id for split in SPLITS for task_id in listed(split)]
    assert len(every) == len(set(every)) == 3 + sum(sum(of.values()) for of in INSTANCES.values())
    for task_id in every[3:]:
        of = instance_id(task_id)
        assert of is not None
        assert str(of) == task_id
    for wrong in ("varied_mlp", "varied_mlp/eval/48", "varied_mlp/train/999", "x/eval/1", ""):
        assert instance_id(wrong) is None


def test_names_stand_for_tasks() -> None:
    assert named("hard_cifar") == ["hard_cifar"]
    assert named("varied_mlp/eval/7") == ["varied_mlp/eval/7"]
    assert named("varied_mlp/validation") == [
        f"varied_mlp/validation/{index}" for index in range(24)
    ]
    assert named("varied_mlp/train/1000-1002") == [
        f"varied_mlp/train/{index}" for index in (1000, 1001, 1002)
    ]
    for wrong in ("varied_mlp/eval/40-48", "varied_mlp/eval/5-4", "varied_mlp", "easy"):
        with pytest.raises(ValueError, match="no task is named"):
            named(wrong)
