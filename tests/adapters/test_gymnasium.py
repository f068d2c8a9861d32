"""The environment as Gymnasium's, one at a time and side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
import numpy as np
import pytest
from fakes import FakeRunner, learning
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_for_sb3

from ml_trainer_env.adapters.gymnasium import TrainingEnv, VectorTrainings
from ml_trainer_env.adapters.rollout import Rollout, connecting
from ml_trainer_env.adapters.stable_baselines import SideBySide
from ml_trainer_env.adapters.steps import ACTIONS, EPOCHS, FACTORS, FEATURES, Decision, Seen, play
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime.asking import QueueFull
from ml_trainer_env.task_ids import instance_id

ACTION = st.tuples(*(st.integers(0, count - 1) for count in ACTIONS))
KEEP = FACTORS.index(1.0)
ALL = EPOCHS.index(None)
ONE = EPOCHS.index(1)


def env_on(url: str | None, *tasks: str) -> TrainingEnv:
    made = gymnasium.make(
        "ml_trainer_env.adapters.gymnasium:MLTrainer-v0", tasks=tasks, url=url
    ).unwrapped
    assert isinstance(made, TrainingEnv)
    return made


def test_gymnasium_finds_nothing_to_complain_about(url: str) -> None:
    check_env(env_on(url, "easy_mnist", "hard_cifar"), skip_render_check=True)


def test_stable_baselines_finds_nothing_to_complain_about(url: str) -> None:
    check_for_sb3(env_on(url, "easy_mnist"))


def test_on_the_engine_the_same_seed_and_actions_are_the_same_episode() -> None:
    def episode() -> list[Any]:
        env = env_on(None, "varied_mlp/validation")
        seen: list[Any] = [env.reset(seed=5)]
        seen += [env.step(np.array(action)) for action in ([6, 1, 0, 1], [2, 2, 1, ALL])]
        env.close()
        return seen

    one, other = episode(), episode()

    assert one[-1][2], "the episode is over"
    for here, there in zip(one, other, strict=True):
        np.testing.assert_equal(here, there)


@settings(max_examples=60, deadline=None)
@given(
    actions=st.lists(ACTION, min_size=60, max_size=60),
    task=st.sampled_from(["easy_mnist", "varied_mlp/eval/3"]),
)
def test_whatever_is_done_ends_in_a_grade(actions: list[tuple[int, ...]], task: str) -> None:
    """Every action has a meaning, none is refused, all numbers are in their box, and the rewards
    add up to those of the episode.
    """
    env = env_on(None, task)
    runner = FakeRunner(
        lambda epoch, plan: None if plan.learning_rate > 1 else learning(epoch, plan)
    )
    env._rollout = Rollout(lambda: LocalSession(MLTrainerEnvironment(runner)))
    observation, _ = env.reset(seed=0)
    total, done, info = 0.0, False, {}
    for action in actions:
        assert env.observation_space.contains(observation)
        observation, reward, done, truncated, info = env.step(np.array(action))
        total += reward
        assert not truncated
        if done:
            break
    assert done, "an episode has fewer steps than it has calls"
    assert env.observation_space.contains(observation)
    assert env._rollout.errors == 0
    assert total == pytest.approx(env._rollout.earned)
    assert info["score"] == env.status.grade.score  # type: ignore[union-attr]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array(actions[0]))


def test_a_step_is_the_calls_that_its_action_means(url: str) -> None:
    with Rollout(connecting(url)) as rollout:
        rollout.begin("easy_mnist")
        play(rollout, Decision.of([FACTORS.index(10), 2, 0, ONE]))
        first = rollout.status
        play(rollout, Decision.of([KEEP, 2, 0, ONE]))  # the same configuration costs no call
        second = rollout.status
        play(rollout, Decision.of([FACTORS.index(1 / 10), 0, 1, ALL]))
        last = rollout.status

    assert first is not None
    assert first.current_config is not None
    assert second is not None
    assert last is not None
    assert last.current_config is not None
    assert first.current_config.learning_rate == pytest.approx(0.01)
    assert first.current_config.dropout == 0.2
    assert first.current_config.augmentation_strength == 0.5
    assert (first.current_epoch, first.tool_calls_left) == (1, 48)
    assert (second.current_epoch, second.tool_calls_left) == (2, 47)
    assert last.current_config.lr_schedule == "cosine"
    assert last.current_config.learning_rate == pytest.approx(0.001)
    assert last.current_epoch == last.max_epochs
    assert last.grade is not None


def test_where_calls_run_short_the_budget_is_spent_all_the_same(url: str) -> None:
    """A policy that looks after every epoch has fewer calls than epochs."""
    with Rollout(connecting(url)) as rollout:
        rollout.begin("easy_mnist")
        for number in range(60):
            if not rollout.is_over:
                play(rollout, Decision.of([KEEP, number % 2, 0, ONE]))

    assert rollout.status is not None
    assert rollout.status.remaining_budget == 0
    assert rollout.status.grade is not None
    assert rollout.status.grade.submitted_by == "agent"


@pytest.mark.parametrize("action", [[-1, 0, 0, 0], [0, 5, 0, 0], [0, 0, 0, 9]])
def test_what_is_no_action_is_none(action: list[int]) -> None:
    with pytest.raises(IndexError):
        Decision.of(action)
    with pytest.raises(TypeError):
        Decision.of([0.5, 0, 0, 0])  # type: ignore[list-item]


def test_a_call_that_is_refused_is_our_mistake(
    runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was trained: no reward of 0, and no next try without a pause."""
    rollout = Rollout(lambda: LocalSession(MLTrainerEnvironment(runner)), patience_s=0)
    rollout.begin("easy_mnist")

    def refuse(*_: Any) -> Any:
        raise QueueFull("the server has no core")

    monkeypatch.setattr(runner, "train", refuse)
    with pytest.raises(RuntimeError, match="no core"):
        play(rollout, Decision.of([KEEP, 0, 0, ALL]))


def test_a_divergence_is_gone_on_from(runner: FakeRunner) -> None:
    runner.script = lambda epoch, plan: None if plan.learning_rate > 0.02 else learning(epoch, plan)
    rollout = Rollout(lambda: LocalSession(MLTrainerEnvironment(runner)))
    rollout.begin("easy_mnist")
    play(rollout, Decision.of([FACTORS.index(10), 0, 0, ONE]))
    play(rollout, Decision.of([FACTORS.index(10), 0, 0, ALL]))  # diverges, with the budget unspent
    assert rollout.status is not None
    assert rollout.status.is_diverged
    assert not rollout.is_over

    play(rollout, Decision.of([FACTORS.index(1 / 10), 0, 0, ALL]))

    assert rollout.is_over
    assert rollout.status.remaining_budget == 0


def test_features_have_names_and_say_what_they_say(url: str) -> None:
    with Rollout(connecting(url)) as rollout:
        seen = Seen(rollout.begin("easy_mnist"))
        play(rollout, Decision.of([KEEP, 3, 0, 2]))
        assert rollout.status is not None
        seen.after(rollout.status)
        play(rollout, Decision.of([FACTORS.index(10), 3, 0, 0]))
        seen.after(rollout.status)

    assert len(seen.features()) == len(FEATURES) == len(set(FEATURES))
    told = dict(zip(FEATURES, seen.features(), strict=True))
    assert told["val accuracy"] == rollout.status.val_accuracy
    assert told["budget left"] == pytest.approx(0.95)
    assert told["dropout"] == 0.6
    assert told["rate"] == pytest.approx(0.5 / 3.5)  # of 0.01
    assert told["rate, 0 steps ago"] == 0
    assert told["rate, 1 steps ago"] == pytest.approx(-1 / 3)
    assert told["epochs, 1 steps ago"] == 0.5
    assert told["there, 1 steps ago"] == 1
    assert told["there, 2 steps ago"] == 0


def test_tasks_are_drawn_from_what_was_named(url: str) -> None:
    env = env_on(url, "varied_mlp/eval/3-4", "easy_mnist")
    drawn = {env.reset(seed=seed)[1]["task_id"] for seed in range(30)}
    assert drawn == {"varied_mlp/eval/3", "varied_mlp/eval/4", "easy_mnist"}

    endless = env_on(url, "varied_cnn")
    of = instance_id(endless.reset(seed=1)[1]["task_id"])
    assert of is not None
    assert (of.family, of.split, of.is_endless) == ("varied_cnn", "train", True)

    chosen = {"task_id": "hard_cifar", "seed": 9}
    assert env.reset(options=chosen)[1] == chosen
    family = {"task_id": "varied_mlp", "seed": 4}
    assert env.reset(options=family)[1] == family | {"task_id": "varied_mlp/train/1004"}
    with pytest.raises(ValueError, match="taks_id"):
        env.reset(options={"taks_id": "hard_cifar"})
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array([0, 0, 0, 0]))
    for each in (env, endless):
        each.close()
    with pytest.raises(ValueError, match="no task is named"):
        env_on(url, "varied_rnn")


def values(given: Any) -> Any:
    """Without arrays, so that two of them are equal or not."""
    if isinstance(given, np.ndarray):
        return values(given.tolist())
    if isinstance(given, dict):
        return {name: values(value) for name, value in given.items()}
    return [values(each) for each in given] if isinstance(given, list | tuple) else given


MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]


@pytest.mark.parametrize("mode", MODES)
def test_side_by_side_is_what_one_after_the_other_would_be(
    mode: AutoresetMode, serve: Callable[..., str]
) -> None:
    """More steps than an episode has, so that environments are reset on the way."""
    url = serve(max_sessions=8)
    vector = VectorTrainings(3, autoreset_mode=mode, tasks=["medium_fashion"], url=url)
    serial = gymnasium.vector.SyncVectorEnv(
        [lambda: env_on(url, "medium_fashion")] * 3, autoreset_mode=mode
    )
    serial.action_space.seed(2)
    ended = 0

    assert values(vector.reset(seed=1)) == values(serial.reset(seed=1))
    for _ in range(25):
        actions = serial.action_space.sample()
        here, there = vector.step(actions), serial.step(actions)
        assert values(here) == values(there)
        ended += int(here[2].sum())

    assert ended >= 3
    for each in (vector, serial):
        each.close()


def both(url: str, count: int) -> list[Any]:
    """Gymnasium's own kind of sessions side by side, and Stable-Baselines3's."""
    return [kind(count, tasks=["easy_mnist"], url=url) for kind in (VectorTrainings, SideBySide)]


def test_sessions_train_at_the_same_time(serve: Callable[..., str], runner: FakeRunner) -> None:
    action = np.array([[KEEP, 0, 0, ONE]] * 4)
    for envs in both(serve(max_sessions=8), 4):
        envs.reset()
        runner.gate.clear()
        with ThreadPoolExecutor(1) as thread:
            stepping = thread.submit(envs.step, action)
            for _ in range(4):  # all have begun, and none can end
                assert runner.started.acquire(timeout=20)
            runner.gate.set()
            stepping.result(timeout=20)
        envs.close()


def test_after_an_error_nothing_goes_on_behind_the_next_episode(
    serve: Callable[..., str], runner: FakeRunner
) -> None:
    action = np.array([[KEEP, 0, 0, ALL], [KEEP, 99, 0, ALL]])
    for envs in both(serve(max_sessions=4), 2):
        envs.reset()
        with pytest.raises(IndexError):
            envs.step(action[::-1])  # the second one has begun, and is not asked for
        envs.reset()
        envs.step(np.array([[KEEP, 0, 0, ONE]] * 2))
        for env in envs.envs:
            assert env.unwrapped.status.current_epoch == 1
            assert not env.unwrapped.status.done
        envs.close()


def test_episodes_without_a_graded_epoch_end_beside_others(
    serve: Callable[..., str], runner: FakeRunner
) -> None:
    """Every epoch of the one has diverged: its grade names none."""
    runner.script = lambda epoch, plan: None if plan.learning_rate > 1 else learning(epoch, plan)
    for envs in both(serve(max_sessions=4), 2):
        envs.reset()
        hot = FACTORS.index(30)
        ended = 0
        for step in range(60):
            heat = hot if step < 3 else KEEP
            _, _, done, *_ = envs.step(np.array([[KEEP, 0, 0, ONE], [heat, 0, 0, ONE]]))
            ended += int(done.sum())
        assert ended >= 2
        envs.close()


def test_an_error_in_a_thread_is_raised_by_the_step(url: str) -> None:
    vector = VectorTrainings(2, tasks=["easy_mnist"], url=url)
    vector.reset(seed=0)
    with pytest.raises(IndexError):
        vector.step(np.array([[0, 0, 0, 0], [0, 99, 0, 0]]))
    vector.close()


@pytest.mark.filterwarnings("ignore")
def test_ppo_trains_on_it(serve: Callable[..., str]) -> None:
    url = serve(max_sessions=4)
    envs = SideBySide(4, tasks=["medium_fashion", "varied_mlp"], url=url)
    model = PPO("MlpPolicy", envs, n_steps=8, batch_size=16, n_epochs=2, seed=0, device="cpu")
    before = [value.clone() for value in model.policy.parameters()]

    model.learn(96)

    assert model.num_timesteps == 96
    assert any(
        (one != other).any() for one, other in zip(before, model.policy.parameters(), strict=True)
    )
    assert model.ep_info_buffer is not None
    envs.close()
