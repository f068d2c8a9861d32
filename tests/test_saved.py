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
from fakes import FakeRunner, begin
from live import eventually, free_port
from openenv.core.env_server.mcp_types import CallToolAction
from real import Player, engine
from states import value

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.agents.moves import SUBMIT, configure, rate, run
from ml_trainer_env.server import process
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.saved import SavedEpisodes
from ml_trainer_env.server.sharing import SharingRunner
from ml_trainer_env.server.snapshots import SnapshotFolder, Snapshots
from ml_trainer_env.server.tools import TOOLS
from ml_trainer_env.server.validation import ActionError, InvalidArguments
from ml_trainer_env.wire import ToolObservation

TIMES = {"epoch_time_seconds": None}
Sessions = Callable[[], MLTrainerEnvironment]


def call(env: MLTrainerEnvironment, tool: str, **arguments: Any) -> Any:
    """What the agent sees, but for the time that it took."""
    observation = env.step(CallToolAction(tool_name=tool, arguments=arguments))
    assert isinstance(observation, ToolObservation)
    assert observation.status, observation.error
    return observation.status.model_copy(update=TIMES)


@pytest.fixture
def sessions(runner: FakeRunner) -> Sessions:
    saved = SavedEpisodes()
    return lambda: MLTrainerEnvironment(runner, begin, saved=saved)


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
    opening = other.reset(fork_of="first").status
    assert (opening.current_epoch, opening.reward, opening.done) == (4, 0.0, False)
    one_state, other_state = one.state.model_dump(), other.state.model_dump()
    for own in ("episode_id", "step_count"):
        assert one_state.pop(own) != other_state.pop(own)
    assert one_state == other_state
    assert call(one, "get_training_status") == call(other, "get_training_status")


def test_equal_moves_give_equal_results_and_other_moves_disturb_nobody(sessions: Sessions) -> None:
    one, twin, other = parent(sessions), sessions(), sessions()
    for fork in (twin, other):
        fork.reset(fork_of="first")
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
        assert fork.reset(fork_of="first").status.current_epoch == 4
        runner.gate.set()
        assert busy.result(20).current_epoch == 6


def test_a_session_can_fork_itself(sessions: Sessions) -> None:
    env = parent(sessions)
    env.reset(fork_of="first", episode_id="second")
    assert (env.state.current_epoch, env.state.episode_id) == (4, "second")
    with pytest.raises(InvalidArguments):
        env.reset(fork_of="first")  # the session has left it
    assert env.state.current_epoch == 4


def test_only_open_episodes_can_be_forked(sessions: Sessions) -> None:
    graded, closed, fork = parent(sessions), sessions(), sessions()
    call(graded, "submit_model")
    closed.reset(episode_id="closed")
    closed.close()
    for episode_id in ("first", "closed", "never was"):
        with pytest.raises(InvalidArguments, match="fork_of"):
            fork.reset(fork_of=episode_id)
    assert not fork._saved._open


@pytest.mark.parametrize("more", [{"seed": 1}, {"task_id": "easy_mnist"}, {"split": "train"}])
def test_a_fork_brings_its_own_task_and_seed(sessions: Sessions, more: dict[str, Any]) -> None:
    parent(sessions)
    with pytest.raises(InvalidArguments, match=next(iter(more))):
        sessions().reset(fork_of="first", **more)


def test_an_agent_cannot_fork() -> None:
    for tool in TOOLS.values():
        assert "fork" not in f"{tool.name} {tool.input_schema}"


def test_a_fork_costs_a_key(sessions: Sessions) -> None:
    one, other = parent(sessions), sessions()
    other.reset(fork_of="first")
    assert one._run is not None
    assert other._run is not None
    assert other._run.episode.now.training is one._run.episode.now.training


def test_through_the_server(url: str) -> None:
    with MLTrainerEnv(base_url=url) as one, MLTrainerEnv(base_url=url) as other:
        one.reset(seed=3)
        one.call_tool("configure_training", learning_rate=0.1)
        one.call_tool("run_epochs", num_epochs=2)
        forked = other.fork(one.state().episode_id, "child").observation.status
        assert forked.current_epoch == 2
        assert other.state().episode_id == "child"
        statuses = [each.call_tool("submit_model") for each in (one, other)]
        assert statuses[0] == statuses[1]


# Restarts -------------------------------------------------------------------------------------

MOVES = (configure(optimizer="sgd", learning_rate=0.05, dropout=0.1), run(2))
REST = (rate(0.02), run(1), SUBMIT)


class Process:
    """What one run of a server holds, over the folders that outlive it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.snapshots = Snapshots(10**9, SnapshotFolder(path / "states", 10**9))
        self.runner = SharingRunner(engine(), self.snapshots)
        saved = SavedEpisodes(path / "episodes")
        monkeypatch.setattr(process, "saved_episodes", lambda: saved)

    def player(self) -> Player:
        return Player(runner=self.runner)


@pytest.mark.parametrize("lost", ["nothing", "states"])
def test_the_rest_of_the_episode_is_what_it_would_have_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    first = Process(tmp_path, monkeypatch).player()
    first.do(*MOVES)
    episode_id = first.env.state.episode_id
    if lost == "states":  # evicted, say
        for file in (tmp_path / "states").iterdir():
            file.unlink()
    second = Process(tmp_path, monkeypatch)
    player = second.player()
    player.env.reset(fork_of=episode_id, episode_id=episode_id)
    assert player.env.state.tool_calls_left == first.env.state.tool_calls_left
    resumed, alone = player.do(*REST), Player().do(*MOVES, *REST)
    assert value(resumed.training) == value(alone.training)
    ends = [outcome.statuses[-len(REST) :] for outcome in (resumed, alone)]
    one, other = ([status.model_copy(update=TIMES) for status in end] for end in ends)
    assert one == other


def test_what_is_left_behind_is_resumed_only_by_the_same_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = Process(tmp_path, monkeypatch).player()
    player.do(configure(), run(1))
    episode_id = player.env.state.episode_id
    (file,) = (tmp_path / "episodes").iterdir()
    file.write_text(file.read_text().replace('"key":"', '"key":"0'))
    other = Process(tmp_path, monkeypatch).player()
    with pytest.raises(ActionError, match="another version"):
        other.env.reset(fork_of=episode_id)
    file.write_text("{}")
    with pytest.raises(InvalidArguments, match="no open episode"):
        other.env.reset(fork_of=episode_id)


@contextmanager
def server(state_dir: Path, port: int) -> Any:
    """The real server; killed at the end."""
    command = ["-m", "ml_trainer_env.server.app", "--host", "127.0.0.1", "--port", str(port)]
    env = {**os.environ, "ML_TRAINER_STATE_DIR": str(state_dir), "ML_TRAINER_RUNNER": "inline"}
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
        episode_id = lost.state().episode_id
    with server(tmp_path, port) as url, MLTrainerEnv(base_url=url) as env:
        resumed = env.resume(episode_id).observation.status
        assert resumed.loss_history_last_10 == before.loss_history_last_10
        assert env.state().episode_id == episode_id
        ended = env.call_tool("submit_model")
        env.reset(seed=4)
        env.call_tool("configure_training", optimizer="sgd", learning_rate=0.05)
        env.call_tool("run_epochs", num_epochs=2)
        assert env.call_tool("submit_model") == ended
    with suppress(Exception):  # its connection is gone, and that is all there is to say
        lost.close()
