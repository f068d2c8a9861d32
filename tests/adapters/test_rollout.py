"""Sessions that come and go behind one episode."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

import pytest
from fakes import FakeRunner
from live import eventually, serving

from ml_trainer_env.adapters.rollout import OtherBits, Rollout, connecting
from ml_trainer_env.agents.moves import SUBMIT, configure, run
from ml_trainer_env.agents.session import RemoteSession
from ml_trainer_env.server.app import build
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings


def served(runner: FakeRunner, port: int = 0):
    environment = partial(MLTrainerEnvironment, runner)
    return serving(build(environment, Settings()), bind=port)


def test_a_lost_session_is_found_again_by_its_moves(runner: FakeRunner) -> None:
    """The server is gone with all that it knew; another one takes its place."""
    with served(runner) as url:
        undisturbed = Rollout(connecting(url))
        played(undisturbed)
        rollout = Rollout(connecting(url))
        rollout.begin("medium_fashion", seed=4)
        rollout.call(*configure(learning_rate=0.02))
        rollout.call(*run(3))
        rollout.call("run_epochs", {"num_epochs": 0})  # an error, which is no move
        port = int(url.rpartition(":")[2])
    with served(runner, port):
        rollout.call(*run(2))
        grade = rollout.finish()

    assert grade == undisturbed.finish()
    assert rollout.earned == undisturbed.earned
    assert rollout.status == undisturbed.status


def played(rollout: Rollout) -> None:
    rollout.begin("medium_fashion", seed=4)
    for move in (configure(learning_rate=0.02), run(3), run(2), SUBMIT):
        rollout.call(*move)


def test_where_the_moves_lead_elsewhere_the_episode_is_not_patched_up(runner: FakeRunner) -> None:
    with served(runner) as url:
        rollout = Rollout(connecting(url))
        rollout.begin("easy_mnist")
        rollout.call(*configure(learning_rate=0.02))
        rollout.call(*run(3))
        port = int(url.rpartition(":")[2])
    other = FakeRunner(lambda epoch, plan: None)  # here everything diverges
    with served(other, port), pytest.raises(OtherBits):
        rollout.call(*run(2))


def test_a_full_server_is_waited_for(serve: Callable[..., str]) -> None:
    url = serve(max_sessions=1)
    first, second = Rollout(connecting(url)), Rollout(connecting(url), patience_s=0)
    first.begin("easy_mnist")

    with pytest.raises(RuntimeError, match="CAPACITY_REACHED"):
        second.begin("easy_mnist")

    first.close()
    eventually(lambda: begins(second))


def begins(rollout: Rollout) -> bool:
    try:
        rollout.begin("easy_mnist")
    except RuntimeError:
        return False
    return True


def test_a_server_that_was_never_there_is_told_of_at_once() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ConnectionError):
            Rollout(connecting(f"http://127.0.0.1:{held.getsockname()[1]}")).begin("easy_mnist")


def test_no_task_is_our_mistake(url: str) -> None:
    with pytest.raises(RuntimeError, match="task_id"):
        Rollout(connecting(url)).begin("varied_mlp/eval/48")


def test_after_the_end_nothing_is_called(url: str) -> None:
    rollout = Rollout(connecting(url))
    played(rollout)
    with pytest.raises(RuntimeError, match="no episode"):
        rollout.call(*run(1))


def test_one_that_is_forgotten_gives_its_session_back(serve: Callable[..., str]) -> None:
    url = serve(max_sessions=1)
    rollout = Rollout(connecting(url))
    rollout.begin("easy_mnist")
    del rollout
    session = RemoteSession(url)
    eventually(lambda: _began(session))
    session.close()


def _began(session: RemoteSession) -> bool:
    try:
        session.begin("easy_mnist", 0)
    except RuntimeError:
        return False
    return True
