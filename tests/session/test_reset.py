"""Resets, the state and the task API of the environment, in process."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import begin
from play import call, trained

from ml_trainer_env.models import MAX_SEED
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.validation import ActionError, InvalidArguments
from ml_trainer_env.task_ids import CLASSIC_IDS, INSTANCES, SPLITS, listed

# Reset ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", CLASSIC_IDS)
def test_reset_begins_the_task_that_was_asked_for(env: MLTrainerEnvironment, task_id: str) -> None:
    observation = env.reset(task_id=task_id, seed=MAX_SEED, episode_id="mine")
    assert TASKS[task_id].goal in observation.status.message
    assert (observation.done, observation.reward) == (False, None)
    state = env.state
    assert (state.task_id, state.seed, state.episode_id) == (task_id, MAX_SEED, "mine")
    assert (state.step_count, state.current_epoch, state.tool_calls_left) == (0, 0, 50)
    assert (state.max_epochs, state.task_version) == (
        TASKS[task_id].max_epochs,
        TASKS[task_id].version,
    )


def test_reset_without_options_is_the_easy_task_with_seed_zero(env: MLTrainerEnvironment) -> None:
    env.reset()
    first = env.state.episode_id
    assert (env.state.task_id, env.state.seed) == ("easy_mnist", 0)
    env.reset(seed=None, task_id=None)
    assert env.state.episode_id not in (None, first)


def test_reset_gives_the_engine_the_seed(env: MLTrainerEnvironment) -> None:
    env.reset(task_id="hard_cifar", seed=7)
    assert env.episode is not None
    training = env.episode.now.training
    assert (training.workload.dataset, training.seed) == ("cifar10", 7)
    assert training == begin(TASKS["hard_cifar"], 7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task_id": "easy"}, 'task_id: must be one of "easy_mnist", "medium_fashion"'),
        ({"task_id": 1}, "task_id: must be one of"),
        ({"seed": -1}, "seed: must be a whole number with 0 <= seed"),
        ({"seed": MAX_SEED + 1}, "seed: must be a whole number"),
        ({"seed": "7"}, "seed: must be a whole number"),
        ({"seed": True}, "seed: must be a whole number"),
        ({"seed": 1.5}, "seed: must be a whole number"),
        ({"episode_id": ""}, "episode_id: must be a string of 1 to 255 characters"),
        ({"episode_id": 3}, "episode_id: must be a string"),
        ({"task": "easy_mnist"}, '"task": unknown; reset takes seed, episode_id, task_id'),
        ({"self": 1}, '"self": unknown'),
        ({"split": "test", "index": 0}, 'split: must be one of "train", "validation", "eval"'),
        ({"split": "train"}, "index: is required with split"),
        *(
            ({"split": split, "index": last + 1}, f"index: must be 0 to {last} in {split}")
            for split in SPLITS
            for last in [len(listed(split)) - 1]
        ),
        ({"split": "eval", "index": -1}, "index: must be a whole number with 0 <= index"),
        ({"task_id": "varied_mlp", "split": "eval"}, "index: is required with split"),
        ({"task_id": "varied_mlp", "index": 200}, "index: must be 0 to 199 in train, or from 1000"),
        (
            {"task_id": "varied_cnn", "split": "validation", "index": 24},
            "index: must be 0 to 23 in validation",
        ),
        ({"task_id": "varied_mlp/eval/48"}, 'or like "varied_mlp/eval/7"'),
        ({"task_id": "varied_mlp/train/0200"}, "task_id: must be one of"),
        ({"task_id": "varied_mlp/eval/7", "index": 7}, "task_id: give either"),
        ({"task_id": "easy_mnist", "index": 0}, "task_id: give either"),
    ],
)
def test_a_bad_reset_teaches_and_leaves_the_episode_alone(
    env: MLTrainerEnvironment, options: dict[str, Any], said: str
) -> None:
    trained(env)
    before = env.state
    with pytest.raises(InvalidArguments) as caught:
        env.reset(**options)
    assert said in str(caught.value)
    assert env.state == before
    assert call(env, "run_epochs", num_epochs=1).error is None


def test_reset_abandons_the_episode_before_it(env: MLTrainerEnvironment) -> None:
    trained(env, 5, task_id="easy_mnist")
    status = env.reset(task_id="easy_mnist").status
    assert (status.current_epoch, status.current_config, status.tool_calls_left) == (0, None, 50)


def test_a_reset_after_the_end_begins_a_fresh_episode(env: MLTrainerEnvironment) -> None:
    trained(env)
    call(env, "submit_model")
    assert env.state.done
    assert trained(env).reward > 0
    assert not env.state.done


# State ------------------------------------------------------------------------------------------


def test_the_state_follows_the_episode_and_hides_the_results(env: MLTrainerEnvironment) -> None:
    assert env.state.task_id is None
    trained(env, 6)
    state = env.state
    assert (state.step_count, state.current_epoch, state.remaining_budget) == (2, 6, 94)
    assert (state.tool_calls_left, state.done) == (48, False)
    call(env, "get_training_status")
    assert env.state.step_count == 3
    call(env, "submit_model")
    state = env.state
    assert state.done
    shown = state.model_dump_json()
    for secret in ("score", "accuracy", "grade", "label", "loss"):
        assert secret not in shown


def test_a_closed_session_refuses(env: MLTrainerEnvironment) -> None:
    trained(env)
    env.close()
    error = call(env, "get_training_status").error
    assert error is not None
    assert "closed" in error.message
    with pytest.raises(ActionError, match="closed"):
        env.reset()


# Tasks ------------------------------------------------------------------------------------------


def test_the_task_api_lists_the_tasks(env: MLTrainerEnvironment) -> None:
    assert env.list_splits() == list(SPLITS)
    cluster = INSTANCES["cluster"]
    counts = [3 + 2 * 200 + cluster["train"], 2 * 24 + 40, 2 * 48 + 80]
    assert [env.num_tasks(split) for split in SPLITS] == counts
    for split in SPLITS:
        cards = env.list_tasks(split)
        assert [card["id"] for card in cards] == listed(split)
        assert [card["index"] for card in cards] == list(range(env.num_tasks(split)))
        assert [env.get_task(split, i) for i in (0, 1, 2)] == cards[:3]
        assert env.get_task_range(split, 40, None) == cards[40:]
        for index in (-1, len(cards)):
            with pytest.raises(IndexError):
                env.get_task(split, index)
    with pytest.raises(InvalidArguments, match=r"split: must be"):
        env.list_tasks("test")


@pytest.mark.parametrize(("split", "index"), [("train", 2), ("train", 3), ("eval", 95)])
def test_a_task_is_begun_by_its_place(env: MLTrainerEnvironment, split: str, index: int) -> None:
    env.reset(split=split, index=index)
    assert env.state.task_id == env.get_task(split, index)["id"]


def test_metadata_names_the_environment(env: MLTrainerEnvironment) -> None:
    metadata = env.get_metadata()
    assert metadata.name == "ml_trainer_env"
    assert "real neural networks" in metadata.description
