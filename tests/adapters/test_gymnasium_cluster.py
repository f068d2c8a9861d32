"""A cluster as Gymnasium's environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from adapted import plain
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_for_sb3

from ml_trainer_env.adapters.cluster_steps import ACTIONS, CALLS_KEPT, FEATURES, features
from ml_trainer_env.adapters.gymnasium_cluster import ClusterEnv
from ml_trainer_env.adapters.stable_baselines import SideBySide
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.moves import run
from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.task_ids import TaskId

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the libraries are not ours

NAMES = list(ACTIONS)
TRAIN, SUBMIT = NAMES.index("train 1 window"), NAMES.index("submit")


def env_on(task_id: TaskId) -> ClusterEnv:
    made = gymnasium.make(
        "ml_trainer_env.adapters.gymnasium_cluster:ml_trainer/Cluster-v0", tasks=[task_id], url=None
    ).unwrapped
    assert isinstance(made, ClusterEnv)
    return made


def test_neither_library_finds_anything_to_complain_about(cluster: TaskId) -> None:
    check_env(env_on(cluster), skip_render_check=True)
    check_for_sb3(env_on(cluster))


def test_every_action_is_a_move_that_is_allowed(cluster: TaskId) -> None:
    env = env_on(cluster)
    env.reset(options={"task_id": cluster, "seed": 3})
    actions = [TRAIN, TRAIN, *(n for n in range(len(NAMES)) if n != SUBMIT), SUBMIT]
    total, done, info = 0.0, False, dict[str, Any]()
    for action in actions:
        observation, reward, done, _, info = env.step(np.int64(action))
        assert env.observation_space.contains(observation)
        total += float(reward)

    moves = env._rollout._moves
    assert done
    assert env._rollout.errors == 0
    assert len(moves) == len(actions)
    assert total == info["score"] == plain(None, cluster, 3, moves).score
    tools = {move.tool for move in moves}
    assert tools >= {"restore_checkpoint", "configure_ranks", "configure_data", "run_diagnostic"}
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(TRAIN))


def test_before_the_first_window_an_action_trains_one(cluster: TaskId) -> None:
    env = env_on(cluster)
    env.reset()
    env.step(np.int64(NAMES.index("exclude by norm")))
    assert env._rollout._moves == [run(1)]
    with pytest.raises(IndexError, match="actions are 0 to"):
        env.step(np.int64(len(NAMES)))
    env.close()


def test_what_stands_out_is_seen_and_acted_on(cluster: TaskId) -> None:
    """On a status as a cluster would have it."""
    status = windowed(cluster)
    usual = dict(zip(FEATURES, features(status), strict=True))
    assert usual["there of rank 3"] == 1
    assert usual["there of rank 4"] == 0
    assert usual["loss, 0 windows ago"] != 0 == usual["loss, 1 windows ago"]

    odd = changed(status, gradient_norm=900.0, agreement=-0.9, step_seconds=3.0)
    seen = dict(zip(FEATURES, features(odd), strict=True))
    assert seen["norm of rank 2"] > 2
    assert seen["agreement of rank 2"] == -0.9
    assert seen["pace of rank 2"] > 3
    dead = changed(status, alive=False, gradient_norm=None, agreement=None, step_seconds=None)
    assert odd.cluster is not None
    assert dead.cluster is not None
    for sign in ("norm", "agreement", "speed"):
        choice = ACTIONS[f"spare by {sign}"]
        assert choice is not None
        for each in (odd.cluster, dead.cluster):
            assert choice(each).arguments == {"use_spare": [2]}


def windowed(task_id: TaskId) -> TrainingStatus:
    session = LocalSession()
    session.begin(task_id, 0)
    status = session.call(*run(1)).status
    session.close()
    assert status is not None
    return status


def changed(status: TrainingStatus, **of_rank_two: Any) -> TrainingStatus:
    assert status.cluster is not None
    window = status.cluster.windows[-1]
    ranks = [
        each.model_copy(update=of_rank_two) if each.rank == 2 else each for each in window.ranks
    ]
    window = window.model_copy(update={"ranks": tuple(ranks)})
    cluster = status.cluster.model_copy(update={"windows": (window,)})
    return status.model_copy(update={"cluster": cluster})


@pytest.mark.slow
def test_when_calls_run_short_it_trains_to_the_deadline(cluster: TaskId) -> None:
    env = env_on(cluster)
    env.reset()
    env.step(np.int64(TRAIN))
    steps, done = 0, False
    while not done:
        _, _, done, _, _ = env.step(np.int64(NAMES.index("checksum")))
        steps += 1
    assert steps == 40 - 1 - CALLS_KEPT + 1
    assert env.status.remaining_budget == 0
    assert env.status.grade is not None
    assert env.status.grade.submitted_by == "agent"


def test_stable_baselines_steps_them_side_by_side(cluster: TaskId) -> None:
    envs = SideBySide(2, kind=ClusterEnv, tasks=[cluster], url=None)
    envs.reset()
    observations, rewards, _, _ = envs.step(np.array([TRAIN, TRAIN]))
    envs.close()
    assert isinstance(observations, np.ndarray)
    assert observations.shape == (2, len(FEATURES))
    assert list(rewards) == [0, 0]


def test_single_networks_are_refused() -> None:
    for task in ("easy_mnist", "varied_mlp"):
        with pytest.raises(ValueError, match=f"{task} is no cluster: TrainingEnv"):
            ClusterEnv(tasks=[task], url=None)
