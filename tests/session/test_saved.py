"""Forks and restarts: an episode goes on from where another stands, as that one would have."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fakes import FakeRunner
from live import eventually
from openenv.core.env_server.mcp_types import CallToolAction
from play import answered, key_of, refused

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.server.episode.tools import TOOLS
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session.saved import SavedEpisodes
from ml_trainer_env.server.validation import InvalidArguments

Sessions = Callable[[], MLTrainerEnvironment]


@pytest.fixture
def sessions(runner: FakeRunner) -> Sessions:
    saved = SavedEpisodes()
    return lambda: MLTrainerEnvironment(runner, saved=saved)


def parent(sessions: Sessions) -> MLTrainerEnvironment:
    """A session in the middle of its episode `first`."""
    env = sessions()
    env.reset(seed=3, task_id="medium_fashion", episode_id="first")
    answered(env, "configure_training", learning_rate=0.1, lr_schedule="cosine")
    answered(env, "run_epochs", num_epochs=4)
    return env


# Forks ----------------------------------------------------------------------------------------


def test_a_fork_stands_where_its_parent_stands(sessions: Sessions) -> None:
    one, other = parent(sessions), sessions()
    opening = other.reset(fork_of=key_of(one)).status
    assert (opening.current_epoch, opening.reward, opening.done) == (4, 0.0, False)
    one_state, other_state = one.state.model_dump(), other.state.model_dump()
    for own in ("episode_id", "key", "step_count", "epochs"):
        assert one_state.pop(own) != other_state.pop(own)
    assert one_state == other_state
    assert answered(one, "get_training_status") == answered(other, "get_training_status")


def test_equal_moves_give_equal_results_and_other_moves_disturb_nobody(sessions: Sessions) -> None:
    one, twin, other = parent(sessions), sessions(), sessions()
    for fork in (twin, other):
        fork.reset(fork_of=key_of(one))
    answered(other, "adjust_learning_rate", new_lr=10.0)
    assert answered(other, "run_epochs", num_epochs=2).is_diverged
    for tool, arguments in (("run_epochs", {"num_epochs": 3}), ("submit_model", {})):
        assert answered(one, tool, **arguments) == answered(twin, tool, **arguments)


def test_a_fork_is_taken_after_the_last_finished_action(
    sessions: Sessions, runner: FakeRunner
) -> None:
    env = parent(sessions)
    runner.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(answered, env, "run_epochs", num_epochs=2)
        eventually(lambda: runner.advanced == 4 and runner._running == 1)
        fork = sessions()
        assert fork.reset(fork_of=key_of(env)).status.current_epoch == 4
        runner.gate.set()
        assert busy.result(20).current_epoch == 6


def test_a_session_can_fork_itself(sessions: Sessions) -> None:
    env = parent(sessions)
    key = key_of(env)
    env.reset(fork_of=key, episode_id="second")
    assert (env.state.current_epoch, env.state.episode_id) == (4, "second")
    with pytest.raises(InvalidArguments):
        env.reset(fork_of=key)  # the session has left it
    assert env.state.current_epoch == 4


def test_only_open_episodes_can_be_forked(sessions: Sessions) -> None:
    graded, closed, fork = parent(sessions), sessions(), sessions()
    closed.reset(episode_id="closed")
    keys = [key_of(graded), key_of(closed), "never was"]
    answered(graded, "submit_model")
    closed.close()
    again: Any = fork.reset
    for option in ("fork_of", "resume"):
        for key in keys:
            with pytest.raises(InvalidArguments, match=option) as refused:
                again(**{option: key})
            assert key not in str(refused.value)
    assert not fork._saved._open


@pytest.mark.parametrize("option", ["fork_of", "resume"])
@pytest.mark.parametrize("more", [{"seed": 1}, {"task_id": "easy_mnist"}, {"split": "train"}])
def test_a_key_brings_its_own_task_and_seed(
    sessions: Sessions, option: str, more: dict[str, Any]
) -> None:
    key = key_of(parent(sessions))
    with pytest.raises(InvalidArguments, match=next(iter(more))):
        sessions().reset(**{option: key}, **more)


# Sessions do not touch each other -------------------------------------------------------------


@pytest.mark.parametrize("option", ["fork_of", "resume"])
def test_what_others_can_see_or_guess_opens_nothing(sessions: Sessions, option: str) -> None:
    one, other = parent(sessions), sessions()
    other.reset()
    again: Any = other.reset
    seen = answered(one, "get_training_status")
    guesses = ["first", one.state.episode_id, one.watch_id, seen.message, key_of(one)[:-1]]
    for guess in filter(None, guesses):
        with pytest.raises(InvalidArguments, match=option):
            again(**{option: guess})
    assert other.state.current_epoch == 0
    assert answered(one, "run_epochs", num_epochs=1).current_epoch == 5


def test_no_answer_holds_the_key_but_the_state(sessions: Sessions) -> None:
    env, other = sessions(), parent(sessions)
    answers: list[Any] = [env.reset(), env.reset(fork_of=key_of(other))]
    answers += [
        env.step(CallToolAction(tool_name=tool, arguments=arguments))
        for tool, arguments in (
            ("get_training_status", {}),
            ("run_epochs", {"num_epochs": 0}),
            ("submit_model", {}),
        )
    ]
    shown = " ".join(answer.model_dump_json() for answer in answers)
    assert key_of(env) not in shown
    assert key_of(env) != key_of(other)


def test_an_id_in_use_is_refused_and_its_episode_is_untouched(sessions: Sessions) -> None:
    one, other = parent(sessions), sessions()
    other.reset(episode_id="mine")
    with pytest.raises(InvalidArguments, match=r"episode_id: .* is in use"):
        other.reset(episode_id="first")
    assert (other.state.episode_id, one.state.episode_id) == ("mine", "first")
    other.reset(episode_id="mine")  # one's own id is free to oneself
    other.close()
    assert sessions().reset(fork_of=key_of(one)).status.current_epoch == 4
    one.reset(episode_id="another")
    sessions().reset(episode_id="first")  # and to all, once its session has left it


def test_of_many_who_want_an_id_at_once_one_gets_it(sessions: Sessions) -> None:
    def claim(_: int) -> bool:
        try:
            sessions().reset(episode_id="wanted")
        except InvalidArguments:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(32))) == 1


# Attempts -------------------------------------------------------------------------------------


def test_the_grade_says_which_attempt_it_is(sessions: Sessions) -> None:
    env = sessions()
    attempts: list[int] = []
    for seed, task_id in ((1, None), (2, None), (1, None), (1, "hard_cifar")):
        env.reset(seed=seed, task_id=task_id)
        grade = answered(env, "submit_model").grade
        assert grade is not None
        attempts.append(grade.attempt)
    env.reset(seed=1)  # abandoned, but begun
    env.reset(seed=1)
    assert [*attempts, env.state.attempt] == [1, 1, 2, 1, 4]


def test_a_fork_is_an_attempt_of_its_session_and_a_resumption_the_same_one(
    sessions: Sessions,
) -> None:
    env, other = sessions(), sessions()
    env.reset(seed=3, task_id="medium_fashion")
    env.reset(seed=3, task_id="medium_fashion")
    other.reset(fork_of=key_of(env))
    assert (env.state.attempt, other.state.attempt) == (2, 1)
    other.reset(fork_of=key_of(env))
    assert other.state.attempt == 2
    third = sessions()
    third.reset(resume=key_of(env))
    assert third.state.attempt == 2
    third.reset(seed=3, task_id="medium_fashion")
    assert third.state.attempt == 3


# Resumptions ----------------------------------------------------------------------------------


def test_a_resumed_episode_leaves_the_session_that_had_it(sessions: Sessions) -> None:
    one, other = parent(sessions), sessions()
    key = key_of(one)
    assert other.reset(resume=key).status.current_epoch == 4
    assert (other.state.episode_id, key_of(other)) == ("first", key)
    assert "another session" in refused(one, "run_epochs", num_epochs=1)
    one.close()  # of which the episode knows nothing
    answered(other, "run_epochs", num_epochs=1)
    assert sessions().reset(fork_of=key).status.current_epoch == 5
    with pytest.raises(InvalidArguments, match="in use"):
        sessions().reset(episode_id="first")


def test_a_resumption_waits_for_the_action_in_progress_and_goes_on_before_it(
    sessions: Sessions, runner: FakeRunner
) -> None:
    env = parent(sessions)
    runner.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        busy = pool.submit(refused, env, "run_epochs", num_epochs=2)
        eventually(lambda: runner.advanced == 4 and runner._running == 1)
        resumed = pool.submit(sessions().reset, resume=key_of(env))
        runner.gate.set()
        assert "another session" in busy.result(20)
        assert resumed.result(20).status.current_epoch == 4


def test_an_agent_cannot_fork() -> None:
    for tool in TOOLS.values():
        assert "fork" not in f"{tool.name} {tool.input_schema}"


def test_a_fork_costs_a_key(sessions: Sessions) -> None:
    one, other = parent(sessions), sessions()
    other.reset(fork_of=key_of(one))
    assert one._run is not None
    assert other._run is not None
    assert other._run.episode.now.training is one._run.episode.now.training


def test_through_the_server(url: str) -> None:
    with MLTrainerEnv(base_url=url) as one, MLTrainerEnv(base_url=url) as other:
        one.reset(seed=3)
        one.call_tool("configure_training", learning_rate=0.1)
        one.call_tool("run_epochs", num_epochs=2)
        forked = other.fork(one.state().key, "child").observation.status
        assert forked.current_epoch == 2
        assert other.state().episode_id == "child"
        statuses = [each.call_tool("submit_model") for each in (one, other)]
        assert statuses[0] == statuses[1]


def test_over_plain_http_an_id_shows_nothing(url: str) -> None:
    with MLTrainerEnv(base_url=url) as env:
        env.reset(episode_id="rollout-5-0")
        for option in ("fork_of", "resume"):
            answer = httpx.post(url + "/reset", json={option: "rollout-5-0"})
            assert answer.status_code == 422
            assert "status" not in answer.json()
        assert httpx.post(url + "/reset", json={"episode_id": "rollout-5-0"}).status_code == 422
        assert env.call_tool("configure_training").tool_calls_left == 49
