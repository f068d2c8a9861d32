"""Sessions that come and go behind one episode."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from fakes import FakeRunner
from live import eventually, serving

from ml_trainer_env.adapters import rollout as rollout_module
from ml_trainer_env.adapters.rollout import OtherBits, Rollout, connecting
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.moves import SUBMIT, configure, run
from ml_trainer_env.agents.session import RemoteSession
from ml_trainer_env.models import SERVER_BUSY
from ml_trainer_env.server.app import build
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime.asking import QueueFull
from ml_trainer_env.server.settings import Settings
from ml_trainer_env.wire import ToolObservation


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
    with served(other, port):
        with pytest.raises(OtherBits):
            rollout.call(*run(2))
        for _ in range(2):  # nor is it played on, or graded, by whoever swallows errors
            with pytest.raises(RuntimeError, match="no episode is open"):
                rollout.call(*run(2))
            with pytest.raises(RuntimeError, match="no episode is open"):
                rollout.finish()


def test_a_program_that_forgets_an_episode_ends() -> None:
    program = (
        "from ml_trainer_env.adapters.rollout import Rollout, connecting\n"
        "rollout = Rollout(connecting(None))\n"
        "rollout.begin('easy_mnist')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_replay_that_fails_is_not_played_on(runner: FakeRunner) -> None:
    """Half a replay is another run: the next call makes a whole one."""
    rollout = opened(runner)
    Breaking.faults = [ConnectionResetError(), None, ZeroDivisionError()]  # in the second move
    with pytest.raises(ZeroDivisionError):
        rollout.call(*run(1))

    answer = rollout.call(*run(1))

    assert answer.status is not None
    assert answer.status.current_epoch == 6


class Breaking(LocalSession):
    """Raises what is next in `faults` at a call, and stays open, for the test."""

    faults: ClassVar[list[Exception | None]] = []

    def call(self, tool: str, arguments: Mapping[str, Any]) -> ToolObservation:
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        return super().call(tool, arguments)

    def close(self) -> None:
        pass


def test_patience_begins_with_the_loss_and_not_with_the_call(
    runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the calls that train longest would be those that are given up."""
    rollout = opened(runner)
    now = iter(range(1000, 9000, 50))
    monkeypatch.setattr(rollout_module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    Breaking.faults = [ConnectionResetError(), ConnectionResetError()]

    answer = rollout.call(*run(1))  # 50 virtual seconds between the losses, of 60

    assert answer.status is not None
    assert answer.status.current_epoch == 6
    Breaking.faults = [ConnectionResetError() for _ in range(9)]
    with pytest.raises(ConnectionResetError):
        rollout.call(*run(1))
    assert len(Breaking.faults) == 6  # at 0, 50 and 100 seconds


def test_our_own_errors_are_raised_at_once(runner: FakeRunner) -> None:
    rollout = opened(runner)
    Breaking.faults = [PermissionError("no"), ZeroDivisionError()]

    with pytest.raises(PermissionError):
        rollout.call(*run(1))

    assert len(Breaking.faults) == 1
    Breaking.faults = []


def opened(runner: FakeRunner) -> Rollout:
    """Five epochs in."""
    Breaking.faults = []
    rollout = Rollout(lambda: Breaking(MLTrainerEnvironment(runner)), patience_s=60)
    rollout.begin("easy_mnist")
    for move in (configure(learning_rate=0.02), run(3), run(2)):
        rollout.call(*move)
    return rollout


def test_a_busy_server_is_waited_for(runner: FakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent has done nothing wrong, so it is told nothing."""
    rollout = opened(runner)
    refusals = [QueueFull(f"{SERVER_BUSY}: 3 trainings wait")] * 2
    train = runner.train

    def refusing(*arguments: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return train(*arguments)

    monkeypatch.setattr(runner, "train", refusing)

    answer = rollout.call(*run(1))

    assert answer.status is not None
    assert answer.status.current_epoch == 6
    assert not refusals
    assert rollout.errors == 0


def test_after_a_begin_that_fails_no_episode_is_open(url: str) -> None:
    rollout = Rollout(connecting(url))
    played(rollout)
    with pytest.raises(RuntimeError, match="task_id"):
        rollout.begin("varied_mlp/eval/48")

    assert rollout.status is None
    with pytest.raises(RuntimeError, match="no episode is open"):
        rollout.finish()


def test_a_full_server_is_waited_for(serve: Callable[..., str]) -> None:
    url = serve(max_sessions=1)
    first, second = Rollout(connecting(url)), Rollout(connecting(url))
    first.begin("easy_mnist")

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(second.begin, "easy_mnist")
        impatient = Rollout(connecting(url), patience_s=0)
        with pytest.raises(RuntimeError, match="CAPACITY_REACHED"):
            impatient.begin("easy_mnist")
        first.close()
        assert waiting.result(timeout=60).current_epoch == 0
    second.close()


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
