"""Limits: beyond each a clear error at once, with a hint when to retry, and no harm done."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from live import eventually
from openenv.core.env_server.mcp_types import CallToolAction
from openenv.core.mcp_client import MCPToolClient
from real import Player, inline
from states import small

from ml_trainer_env.agents.moves import configure, run
from ml_trainer_env.client import MLTrainerEnv
from ml_trainer_env.server import settings
from ml_trainer_env.server.engine import varied
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime import cores as lending
from ml_trainer_env.server.runtime.asking import Asker, QueueFull
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.session.turnover import FIRST_GUESS, Turnover
from ml_trainer_env.server.settings import Settings
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.validation import ActionError

HINT = re.compile(r"try again in about (\d+) s")


def hinted(message: str) -> int:
    found = HINT.search(message)
    assert found, message
    return int(found[1])


# The queue ------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once() -> None:
    cores = Cores(threads=1, total=1, max_waiting=1)
    served, over = threading.Event(), threading.Event()

    def wait_for_a_core() -> None:
        with cores.lend(Asker()):
            served.set()

    with ThreadPoolExecutor(1) as threads:
        with cores.lend(Asker()):
            waiting = threads.submit(wait_for_a_core)
            eventually(lambda: cores.waiting == 1)
            with pytest.raises(QueueFull) as refused, cores.lend(Asker()):
                over.set()
            assert hinted(str(refused.value)) >= 1
            assert cores.waiting == 1  # nobody was disturbed
        waiting.result(15)
    assert served.is_set()
    assert not over.is_set()


def test_two_trainings_run_side_by_side_and_not_in_turns() -> None:
    cores = Cores(threads=2, total=2)
    one, other = Asker(who="one"), Asker(who="other")
    lent: list[int] = []
    for asker in (one, one, other, one, other, other):
        with cores.lend(asker) as turn:
            lent.append(turn.threads)
    assert lent == [2, 2, 1, 1, 1, 2]


def test_whoever_was_served_before_is_queued_and_grading_always_is() -> None:
    cores = Cores(threads=1, total=1, max_waiting=0)
    served_before = Asker()
    with cores.lend(served_before):
        pass

    def served(asker: Asker | None) -> bool:
        with cores.lend(asker):
            return True

    with ThreadPoolExecutor(2) as threads:
        with cores.lend():
            waiting = [threads.submit(served, each) for each in (served_before, None)]
            eventually(lambda: cores.waiting == 2)
        assert all(each.result(15) for each in waiting)


def test_a_refused_training_changed_nothing_and_cost_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varied, "resident", small)
    runner = inline(cores=1, max_waiting=0)
    player = Player(runner=runner)
    player.do(configure(), run(1))
    before = player.env.state
    with runner.cores.lend():
        observation: Any = player.env.step(
            CallToolAction(tool_name="run_epochs", arguments={"num_epochs": 2})
        )
    assert observation.error is not None
    hinted(observation.error.message)
    assert observation.reward == 0
    assert player.env.state == before
    assert not player.do(run(2)).errors[1:]
    assert player.env.state.current_epoch == 3


def test_a_training_of_many_epochs_comes_to_its_end_however_long_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varied, "resident", small)
    monkeypatch.setattr(lending, "SLICE", 0.0)  # of the shortest turns, an epoch each
    runner = inline(cores=1, max_waiting=1)
    players = [Player(runner=runner) for _ in range(2)]
    for player in players:
        player.do(configure())
    with ThreadPoolExecutor(2) as threads:
        ended = threads.map(lambda player: player.do(run(6)).errors, players)
        assert list(ended) == [[], []]


# Memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", TASKS)
def test_no_state_of_a_session_weighs_more_than_is_said(
    monkeypatch: pytest.MonkeyPatch, task_id: Any
) -> None:
    monkeypatch.setattr(varied, "resident", small)
    runner = inline()
    adam = configure(optimizer="adam", learning_rate=0.01)
    training = Player(task_id, runner).do(adam, run(3)).tensors
    kept = (training.current, training.best_checkpoint)
    tensors = {id(t): t for each in kept for t in (each.weights, each.statistics)}
    tensors |= {id(t): t for t in training.moments}
    weight = sum(tensor.nbytes for tensor in tensors.values())
    assert weight <= runner.engine().state_bytes[TASKS[task_id].workload.network] <= 64 * 2**20


def test_a_task_that_is_too_large_for_a_session_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "current", lambda: Settings(session_mb=4))
    monkeypatch.setattr(varied, "resident", small)
    env = MLTrainerEnvironment(inline())
    env.reset(task_id="easy_mnist")
    before = env.state
    with pytest.raises(ActionError, match=r"hard_cifar.*ML_TRAINER_SESSION_MB"):
        env.reset(task_id="hard_cifar")
    assert env.state == before


# Places ---------------------------------------------------------------------------------------


def test_without_a_place_one_is_told_at_once_at_every_door(serve: Callable[..., str]) -> None:
    url = serve(max_sessions=1)
    create = {"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create", "params": {}}
    with MLTrainerEnv(base_url=url) as env:
        env.reset()
        with pytest.raises(RuntimeError) as refused, MLTrainerEnv(base_url=url) as other:
            other.reset()
        assert hinted(str(refused.value)) == FIRST_GUESS
        answer = httpx.post(f"{url}/mcp", json=create)
        assert hinted(answer.json()["error"]["message"]) == FIRST_GUESS
        assert env.call_tool("configure_training").tool_calls_left == 49

    def place_is_free() -> bool:
        return "result" in httpx.post(f"{url}/mcp", json=create).json()

    eventually(place_is_free)


def test_an_answer_that_is_no_refusal_passes_unchanged(url: str) -> None:
    with MCPToolClient(base_url=url).sync() as client:
        client.reset()
        assert {tool.name for tool in client.list_tools()} >= {"run_epochs", "submit_model"}
    listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    answer = httpx.post(f"{url}/mcp", json=listing)
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert len(answer.json()["result"]["tools"]) == 6


def test_the_hint_is_the_mean_time_between_two_places() -> None:
    now = [0.0]
    turnover = Turnover(clock=lambda: now[0])
    assert turnover.seconds == FIRST_GUESS
    for now[0] in (10.0, 14.0, 18.0):
        turnover.freed()
    now[0] = 22.0
    assert turnover.seconds == 4
    now[0] = 100.0  # none has come since
    assert turnover.seconds == 30
