"""Restarts: an episode goes on in the next process as it would have in the one before."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeRunner
from live import eventually, free_port
from play import answered, key_of
from real import Player, inline, same_bits

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.agents.moves import SUBMIT, configure, rate, run
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime.records import NAME, Records
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.session import process
from ml_trainer_env.server.session.saved import SavedEpisodes
from ml_trainer_env.server.validation import ActionError, InvalidArguments

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
    answered(first, "configure_training")
    (file,) = tmp_path.glob("*.json")
    before = file.read_bytes()
    other = MLTrainerEnvironment(runner, saved=SavedEpisodes(tmp_path))  # the next server
    for _ in range(2):
        other.reset(episode_id="mine")
        answered(other, "configure_training", learning_rate=0.1)
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
