"""Servers with one folder of episodes: whoever resumes one has it, and nobody else any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import pytest
from fakes import FakeRunner
from live import eventually
from play import call

from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session import saved as files
from ml_trainer_env.server.session.connection import Connection, current_connection
from ml_trainer_env.server.session.saved import SavedEpisodes
from ml_trainer_env.server.session.state_folder import clear, shown
from ml_trainer_env.server.validation import ActionError, InvalidArguments

Server = Callable[[], MLTrainerEnvironment]


@pytest.fixture
def server(runner: FakeRunner, tmp_path: Path) -> Callable[[], Server]:
    """Makes servers, which make sessions."""

    def made() -> Server:
        saved = SavedEpisodes(tmp_path / "episodes")
        return lambda: MLTrainerEnvironment(runner, saved=saved)

    return made


@pytest.fixture
def one(server: Callable[[], Server]) -> Server:
    return server()


@pytest.fixture
def other(server: Callable[[], Server]) -> Server:
    return server()


@pytest.fixture
def connection() -> Iterator[Connection]:
    """A WebSocket, by which this thread's calls come."""
    made = Connection(is_session=True)
    token = current_connection.set(made)
    yield made
    current_connection.reset(token)


def begun(server: Server, **options: Any) -> tuple[MLTrainerEnvironment, str]:
    """A session in the middle of its episode, and the key of that."""
    env = server()
    env.reset(seed=3, **options)
    call(env, "configure_training", learning_rate=0.1)
    call(env, "run_epochs", num_epochs=4)
    key = env.state.key
    assert key
    return env, key


def resumed(server: Server, key: str) -> MLTrainerEnvironment:
    env = server()
    env.reset(resume=key)
    return env


def stands(env: MLTrainerEnvironment) -> tuple[int, int]:
    return env.state.current_epoch, env.state.tool_calls_left


def assert_is_refused(env: MLTrainerEnvironment, tool: str, **arguments: Any) -> None:
    before = stands(env)
    error = call(env, tool, **arguments).error
    assert error
    assert "another session" in error.message
    assert stands(env) == before


def test_the_other_server_goes_on_and_the_first_can_no_longer(one: Server, other: Server) -> None:
    env, key = begun(one, episode_id="mine")
    taken = resumed(other, key)
    assert stands(taken) == stands(env)
    assert taken.state.episode_id == "mine"
    for tool, arguments in (("run_epochs", {"num_epochs": 1}), ("submit_model", {})):
        assert_is_refused(env, tool, **arguments)
    assert not env.state.done
    call(taken, "run_epochs", num_epochs=2)
    env.reset(seed=9)  # which forgets only what is its own
    assert stands(resumed(other, key)) == (6, stands(taken)[1])


def test_back_on_the_first_server_nothing_of_the_other_is_lost(one: Server, other: Server) -> None:
    """Though the first has kept what it knew, in a session that has not noticed anything."""
    env, key = begun(one)
    taken = resumed(other, key)
    call(taken, "run_epochs", num_epochs=2)
    again = resumed(one, key)
    assert stands(again) == stands(taken)
    for left in (env, taken):
        assert_is_refused(left, "run_epochs", num_epochs=1)
    fork = other()
    fork.reset(fork_of=key)
    assert stands(fork) == stands(again)


@pytest.mark.parametrize("end", [lambda env: call(env, "submit_model"), lambda env: env.reset()])
def test_it_ends_once(
    one: Server, other: Server, end: Callable[[MLTrainerEnvironment], object], tmp_path: Path
) -> None:
    env, key = begun(one)
    end(resumed(other, key))
    assert_is_refused(env, "submit_model")
    for server in (one, other):
        with pytest.raises(InvalidArguments, match="no episode"):
            resumed(server, key)
    env.close()
    assert [*shown(tmp_path, 0)][-1].split()[0] in ("0", "1")  # that of the reset can be resumed
    clear(tmp_path)
    assert {file.name for file in (tmp_path / "episodes").iterdir()} == {".lock"}


def test_of_two_who_resume_while_it_trains_one_has_it(one: Server, runner: FakeRunner) -> None:
    """On one server: both wait until the session that has it gives it up."""
    env, key = begun(one)
    runner.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        busy = pool.submit(call, env, "run_epochs", num_epochs=2)
        eventually(lambda: runner._running == 1)
        asked = [one(), one()]
        resuming = [pool.submit(each.reset, resume=key) for each in asked]
        eventually(lambda: env.episode is not None and env.episode._abandoned.is_set())
        runner.gate.set()
        assert busy.result(20).error
        refused = [each.exception(20) is not None for each in resuming]
    acted = [
        not lost and call(each, "run_epochs", num_epochs=1).error is None
        for each, lost in zip(asked, refused, strict=True)
    ]
    assert sorted(acted) == [False, True]
    graded = [call(each, "submit_model").error is None for each in asked]
    assert graded == acted


def test_whoever_lost_it_is_refused_while_the_folder_is_locked(
    one: Server, other: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    env, key = begun(one)
    taken = resumed(other, key)
    with filelock.FileLock(tmp_path / "episodes" / ".lock"):
        assert_is_refused(env, "submit_model")
        before = stands(taken)
        error = call(taken, "submit_model").error  # it could be resumed once more, and graded
        assert error
        assert "locked" in error.message
        assert stands(taken) == before
        assert call(taken, "run_epochs", num_epochs=1).error is None
    assert call(taken, "submit_model").error is None


def test_an_action_in_progress_elsewhere_has_not_happened(
    one: Server, other: Server, runner: FakeRunner
) -> None:
    env, key = begun(one)
    before = stands(env)
    runner.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(call, env, "run_epochs", num_epochs=2)
        eventually(lambda: runner._running == 1)
        taken = resumed(other, key)
        runner.gate.set()
        assert busy.result(20).error
    assert stands(env) == stands(taken) == before


def test_of_many_who_resume_at_once_one_has_it(server: Callable[[], Server]) -> None:
    servers = [server() for _ in range(4)]
    _, key = begun(servers[0])

    def plays(server: Server) -> MLTrainerEnvironment | None:
        try:
            return resumed(server, key)
        except ActionError:  # another was quicker
            return None

    def acts(env: MLTrainerEnvironment | None) -> bool:
        return env is not None and not call(env, "toggle_augmentation", enabled=True).error

    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert sum(pool.map(acts, list(pool.map(plays, servers)))) == 1


def test_an_operator_may_remove_the_files_of_open_episodes(one: Server, tmp_path: Path) -> None:
    env, key = begun(one)
    clear(tmp_path)
    assert call(env, "run_epochs", num_epochs=2).error is None
    assert stands(resumed(one, key)) == stands(env)


def test_a_call_that_nobody_hears_the_answer_of_has_not_happened(
    one: Server, other: Server, connection: Connection
) -> None:
    """A WebSocket is lost while its session trains; what comes back finds the last answer."""
    env, key = begun(one)
    before = stands(env)
    connection.lose()
    for tool, arguments in (("run_epochs", {"num_epochs": 2}), ("submit_model", {})):
        error = call(env, tool, **arguments).error
        assert error
        assert "has not happened" in error.message or "called off" in error.message
    current_connection.set(None)
    assert stands(resumed(other, key)) == before


def test_while_somebody_holds_the_folder(
    one: Server, other: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An action is not saved, and nothing can be taken from another server."""
    monkeypatch.setattr(files, "PATIENCE", 0.01)
    env, key = begun(one)
    with filelock.FileLock(tmp_path / "episodes" / ".lock"):
        assert call(env, "run_epochs", num_epochs=1).error is None
        with pytest.raises(ActionError, match="try again"):
            resumed(other, key)
    assert call(env, "run_epochs", num_epochs=1).error is None
    assert stands(resumed(other, key)) == stands(env)


def test_a_file_that_goes_while_a_server_starts(
    one: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(one)
    episodes = tmp_path / "episodes"
    (episodes / "gone.json").symlink_to("nowhere")  # listed, and not there
    monkeypatch.setattr(files, "MAX_FILES", 1)
    SavedEpisodes(episodes)
    assert len([file for file in episodes.glob("*.json") if file.exists()]) == 1
