"""Forks and restarts: an episode goes on from where another stands, as that one would have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeRunner
from live import eventually, free_port
from openenv.core.env_server.mcp_types import CallToolAction
from real import Player, inline, same_bits

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.agents.moves import SUBMIT, configure, rate, run
from ml_trainer_env.server.episode.tools import TOOLS
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime.records import NAME, Records
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.session import process
from ml_trainer_env.server.session.saved import SavedEpisodes
from ml_trainer_env.server.validation import ActionError, InvalidArguments
from ml_trainer_env.wire import ToolObservation

Sessions = Callable[[], MLTrainerEnvironment]


def call(env: MLTrainerEnvironment, tool: str, **arguments: Any) -> Any:
    """What the agent sees."""
    observation = env.step(CallToolAction(tool_name=tool, arguments=arguments))
    assert isinstance(observation, ToolObservation)
    assert observation.status, observation.error
    return observation.status


def refused(env: MLTrainerEnvironment, tool: str, **arguments: Any) -> str:
    observation = env.step(CallToolAction(tool_name=tool, arguments=arguments))
    assert isinstance(observation, ToolObservation)
    assert observation.error
    return observation.error.message


@pytest.fixture
def sessions(runner: FakeRunner) -> Sessions:
    saved = SavedEpisodes()
    return lambda: MLTrainerEnvironment(runner, saved=saved)


def key_of(env: MLTrainerEnvironment) -> str:
    """As the session's state tells it, and nothing else."""
    key = env.state.key
    assert key is not None
    return key


def parent(sessions: Sessions) -> MLTrainerEnvironment:
    """A session in the middle of its episode `first`."""
    env = sessions()
    env.reset(seed=3, task_id="medium_fashion", episode_id="first")
    call(env, "configure_training", learning_rate=0.1, lr_schedule="cosine")
    call(env, "run_epochs", num_epochs=4)
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
    assert call(one, "get_training_status") == call(other, "get_training_status")


def test_equal_moves_give_equal_results_and_other_moves_disturb_nobody(sessions: Sessions) -> None:
    one, twin, other = parent(sessions), sessions(), sessions()
    for fork in (twin, other):
        fork.reset(fork_of=key_of(one))
    call(other, "adjust_learning_rate", new_lr=10.0)
    assert call(other, "run_epochs", num_epochs=2).is_diverged
    for tool, arguments in (("run_epochs", {"num_epochs": 3}), ("submit_model", {})):
        assert call(one, tool, **arguments) == call(twin, tool, **arguments)


def test_a_fork_is_taken_after_the_last_finished_action(
    sessions: Sessions, runner: FakeRunner
) -> None:
    env = parent(sessions)
    runner.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(call, env, "run_epochs", num_epochs=2)
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
    call(graded, "submit_model")
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
    seen = call(one, "get_training_status")
    guesses = ["first", one.state.episode_id, one.watch_id, seen.message, key_of(one)[:-1]]
    for guess in filter(None, guesses):
        with pytest.raises(InvalidArguments, match=option):
            again(**{option: guess})
    assert other.state.current_epoch == 0
    assert call(one, "run_epochs", num_epochs=1).current_epoch == 5


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
        attempts.append(call(env, "submit_model").grade.attempt)
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
    call(other, "run_epochs", num_epochs=1)
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


# Restarts -------------------------------------------------------------------------------------

MOVES = (configure(optimizer="sgd", learning_rate=0.05, dropout=0.1), run(2))
REST = (rate(0.02), run(1), SUBMIT)


class Process:
    """What one run of a server holds, over the folders that outlive it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states = inline(folder=path / "states")
        self.runner = SharingRunner(self.states, Records(path / NAME))
        saved = SavedEpisodes(path / "episodes")
        monkeypatch.setattr(process, "saved_episodes", lambda: saved)

    def player(self) -> Player:
        return Player(runner=self.runner, states=self.states)


STATES, RECORDS = "states/*", f"{NAME}*"


@pytest.mark.parametrize("lost", [(), (STATES,), (RECORDS,), (STATES, RECORDS)])
def test_the_rest_of_the_episode_is_what_it_would_have_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[str, ...]
) -> None:
    first = Process(tmp_path, monkeypatch).player()
    first.do(*MOVES)
    key = key_of(first.env)
    for pattern in lost:
        for file in tmp_path.glob(pattern):
            file.unlink()
    second = Process(tmp_path, monkeypatch)
    player = second.player()
    player.env.reset(resume=key)
    assert player.env.state.episode_id == first.env.state.episode_id
    assert player.env.state.tool_calls_left == first.env.state.tool_calls_left
    resumed, alone = player.do(*REST), Player().do(*MOVES, *REST)
    assert same_bits(resumed.tensors, alone.tensors)
    one, other = (outcome.statuses[-len(REST) :] for outcome in (resumed, alone))
    assert one == other


def test_what_is_left_behind_is_resumed_only_by_the_same_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = Process(tmp_path, monkeypatch).player()
    player.do(configure(), run(1))
    key = key_of(player.env)
    (file,) = (tmp_path / "episodes").glob("*.json")
    assert key not in file.name + file.read_text()
    file.write_text(file.read_text().replace('"training":"', '"training":"0'))
    other = Process(tmp_path, monkeypatch).player()
    with pytest.raises(ActionError, match="another version"):
        other.env.reset(fork_of=key)
    file.write_text("{}")
    with pytest.raises(InvalidArguments, match="no episode"):
        other.env.reset(fork_of=key)


def test_what_is_left_behind_is_touched_by_nobody_who_chooses_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: FakeRunner
) -> None:
    lost = SavedEpisodes(tmp_path)
    first = MLTrainerEnvironment(runner, saved=lost)
    first.reset(episode_id="mine")
    call(first, "configure_training")
    (file,) = tmp_path.glob("*.json")
    before = file.read_bytes()
    other = MLTrainerEnvironment(runner, saved=SavedEpisodes(tmp_path))  # the next server
    for _ in range(2):
        other.reset(episode_id="mine")
        call(other, "configure_training", learning_rate=0.1)
    assert file.read_bytes() == before


@contextmanager
def server(state_dir: Path, port: int) -> Any:
    """The real server; killed at the end."""
    command = ["-m", "ml_trainer_env.server.app", "--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, "ML_TRAINER_STATE_DIR": str(state_dir), "ML_TRAINER_CORES": "1"}
    with subprocess.Popen(
        [sys.executable, *command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            eventually(lambda: _healthy(f"http://127.0.0.1:{port}"), timeout=60)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_after_a_kill_the_next_server_goes_on(tmp_path: Path) -> None:
    port = free_port()
    with server(tmp_path, port) as url:
        lost = MLTrainerEnv(base_url=url).sync()
        lost.connect()
        lost.reset(seed=4)
        lost.call_tool("configure_training", optimizer="sgd", learning_rate=0.05)
        before = lost.call_tool("run_epochs", num_epochs=2)
        state = lost.state()
    with server(tmp_path, port) as url, MLTrainerEnv(base_url=url) as env:
        resumed = env.resume(state.key).observation.status
        assert resumed.loss_history_last_10 == before.loss_history_last_10
        assert env.state().episode_id == state.episode_id
        ended = env.call_tool("submit_model")
        env.reset(seed=4)
        env.call_tool("configure_training", optimizer="sgd", learning_rate=0.05)
        env.call_tool("run_epochs", num_epochs=2)
        again = env.call_tool("submit_model")
        assert again.grade is not None
        first = again.grade.model_copy(update={"attempt": 1})  # it says that it is the second
        assert again.model_copy(update={"grade": first}) == ended
    with suppress(Exception):  # its connection is gone, and that is all there is to say
        lost.close()
