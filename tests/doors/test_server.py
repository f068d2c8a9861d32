"""The live server: its doors, clients that vanish or fall silent, capacity, start and stop."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from checkout import ROOT
from fakes import FakeRunner
from live import eventually, serving
from openenv.core.env_server import mcp_environment
from openenv.core.mcp_client import MCPToolClient
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.models import MAX_TOOL_CALLS
from ml_trainer_env.server import app
from ml_trainer_env.server.app import build
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings
from ml_trainer_env.task_ids import SPLITS, listed
from ml_trainer_env.variables import SettingsError


@contextmanager
def socket_to(url: str, path: str = "/ws") -> Iterator[ClientConnection]:
    with connect(url.replace("http", "ws") + path, proxy=None) as socket:
        yield socket


def ask(socket: ClientConnection, message: dict[str, Any]) -> dict[str, Any]:
    socket.send(json.dumps(message))
    return json.loads(socket.recv(timeout=10))


def tool_step(tool: str, **arguments: Any) -> dict[str, Any]:
    data = {"type": "call_tool", "tool_name": tool, "arguments": arguments}
    return {"type": "step", "data": data}


def rpc(url: str, method: str, timeout: float = 10, **params: Any) -> dict[str, Any]:
    request = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
    return httpx.post(url + "/mcp", json=request, timeout=timeout).json()


def vanish(socket: ClientConnection) -> None:
    """End the connection like a client that was killed: no goodbye."""
    socket.socket.shutdown(2)


# Doors ------------------------------------------------------------------------------------------


def test_an_episode_over_the_websocket(url: str) -> None:
    with socket_to(url) as socket:
        reset = ask(socket, {"type": "reset", "data": {"task_id": "hard_cifar", "seed": 3}})
        assert reset["type"] == "observation"
        assert reset["data"]["observation"]["status"]["max_epochs"] == 60
        ask(socket, tool_step("configure_training", optimizer="sgd"))
        run = ask(socket, tool_step("run_epochs", num_epochs=4))["data"]
        assert run["observation"]["result"]["data"]["current_epoch"] == 4
        assert run["reward"] == run["observation"]["result"]["data"]["reward"] > 0
        assert run["done"] is False
        end = ask(socket, tool_step("submit_model"))["data"]
        assert end["done"] is True
        assert end["reward"] == end["observation"]["result"]["data"]["grade"]["score"]
        state = ask(socket, {"type": "state"})["data"]
        assert (state["task_id"], state["seed"], state["step_count"]) == ("hard_cifar", 3, 3)
        assert state["done"] is True


def test_the_stock_client_meets_limit_end_and_score_behind_mcp(url: str) -> None:
    with MCPToolClient(base_url=url).sync() as client:
        client.reset(task_id="easy_mnist")
        assert len(client.list_tools()) == 6
        client.call_tool("configure_training")
        trained = client.call_tool("run_epochs", num_epochs=20)
        assert trained["reward"] == pytest.approx(sum(trained["reward_terms"].values()))
        assert trained["reward_terms"]["progress"] > 0
        with pytest.raises(RuntimeError, match="num_epochs: must be a whole number with 1 <="):
            client.call_tool("run_epochs", num_epochs=21)
        for _ in range(MAX_TOOL_CALLS - 3):
            assert client.call_tool("toggle_augmentation", enabled=True)["reward"] == 0
        status = client.call_tool("toggle_augmentation", enabled=True)
        assert status["done"] is True
        assert status["grade"]["submitted_by"] == "call_limit"
        assert status["reward"] == status["grade"]["score"] > 0
        with pytest.raises(RuntimeError, match="the episode is over"):
            client.call_tool("submit_model")
        after = client.call_tool("get_training_status")
        assert (after["reward"], after["done"]) == (0, True)


def test_mcp_messages_inside_the_websocket_reach_the_same_episode(url: str) -> None:
    with socket_to(url) as socket:
        ask(socket, {"type": "reset"})
        request = {
            "jsonrpc": "2.0",
            "method": "tools/call",
            "params": {"name": "configure_training", "arguments": {"dropout": 0.1}},
            "id": 1,
        }
        answer = ask(socket, {"type": "mcp", "data": request})["data"]
        assert answer["result"]["data"]["current_config"]["dropout"] == 0.1
        assert ask(socket, {"type": "state"})["data"]["tool_calls_left"] == 49


def test_the_mcp_websocket_answers_json_rpc(url: str) -> None:
    with socket_to(url, "/mcp") as socket:
        request = {"jsonrpc": "2.0", "method": "tools/list", "id": 5}
        answer = ask(socket, request)
        assert answer["id"] == 5
        assert len(answer["result"]["tools"]) == 6


def test_plain_http_resets_and_explains_that_it_keeps_no_session(url: str) -> None:
    reset = httpx.post(url + "/reset", json={"task_id": "medium_fashion"}).json()
    assert reset["observation"]["status"]["task_id"] == "medium_fashion"
    action = {"type": "call_tool", "tool_name": "submit_model", "arguments": {}}
    step = httpx.post(url + "/step", json={"action": action})
    assert step.status_code == 200
    assert "reset first" in step.json()["observation"]["error"]["message"]
    bad = httpx.post(url + "/reset", json={"task_id": "easy"})
    assert bad.status_code == 422
    assert "easy_mnist" in bad.json()["detail"]


def test_the_task_api_over_http(url: str) -> None:
    base = url + "/ml_trainer_env"
    assert [split["name"] for split in httpx.get(base + "/splits").json()] == list(SPLITS)
    for split in SPLITS:
        body, ids = {"split": split}, listed(split)
        tasks = httpx.post(base + "/tasks", json=body).json()["tasks"]
        assert [task["id"] for task in tasks] == ids
        assert httpx.post(base + "/num_tasks", json=body).json() == {"num_tasks": len(ids)}
        assert httpx.post(base + "/task", json={**body, "index": 1}).json()["task"] == tasks[1]
        beyond = httpx.post(base + "/task", json={**body, "index": len(ids)})
        assert beyond.status_code == 400
        with socket_to(url) as socket:
            ask(socket, {"type": "reset", "data": {"split": split, "index": 2}})
            assert ask(socket, {"type": "state"})["data"]["task_id"] == ids[2]
    assert httpx.post(base + "/tasks", json={"split": "test"}).status_code == 422


def test_a_refused_reset_leaves_the_session_working(url: str) -> None:
    with socket_to(url) as socket:
        ask(socket, {"type": "reset"})
        ask(socket, tool_step("configure_training"))
        refused = ask(socket, {"type": "reset", "data": {"task_id": "easy"}})
        assert refused["type"] == "error"
        assert "hard_cifar" in refused["data"]["message"]
        run = ask(socket, tool_step("run_epochs", num_epochs=1))
        assert run["data"]["observation"]["error"] is None


def test_no_time_limit_on_a_step(
    url: str, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_environment, "MCP_TOOL_CALL_TIMEOUT", 0.01)  # 30 s otherwise

    def slow(epoch: int, plan: Any) -> tuple[float, float, float]:
        time.sleep(0.05)
        return 1.0, 0.5, 0.0

    runner.script = slow
    with MLTrainerEnv(base_url=url) as env:
        env.reset()
        env.call_tool("configure_training")
        assert env.call_tool("run_epochs", num_epochs=4).current_epoch == 4


# Clients that vanish or fall silent -------------------------------------------------------------


def test_a_vanished_client_stops_its_training_and_frees_its_place(
    serve: Callable[..., str], runner: FakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    url = serve(max_sessions=1)
    with socket_to(url) as socket:
        ask(socket, {"type": "reset"})
        ask(socket, tool_step("configure_training"))
        runner.gate.clear()
        socket.send(json.dumps(tool_step("run_epochs", num_epochs=20)))
        assert runner.started.acquire(timeout=10)
        vanish(socket)
    time.sleep(0.2)  # let the server see it
    runner.gate.set()

    def place_is_free() -> bool:
        with socket_to(url) as successor:
            return ask(successor, {"type": "reset"})["type"] == "observation"

    eventually(place_is_free)
    assert runner.advanced == 1
    assert not [each for each in caplog.records if each.levelname == "ERROR"]  # a client may go


def test_a_vanished_http_client_stops_its_training(url: str, runner: FakeRunner) -> None:
    session = rpc(url, "openenv/session/create")["result"]["session_id"]
    with socket_to(url, f"/ws?session_id={session}") as socket:
        ask(socket, {"type": "reset"})
        ask(socket, tool_step("configure_training"))
        runner.gate.clear()
        run = {"name": "run_epochs", "arguments": {"num_epochs": 20}, "session_id": session}
        with pytest.raises(httpx.ReadTimeout):
            rpc(url, "tools/call", timeout=0.3, **run)
        time.sleep(0.2)  # let the server see it
        runner.gate.set()
        eventually(lambda: ask(socket, {"type": "state"})["data"]["tool_calls_left"] == 48)
        state = ask(socket, {"type": "state"})["data"]
        assert (state["current_epoch"], runner.advanced) == (1, 1)
        assert ask(socket, tool_step("run_epochs", num_epochs=2))["data"]["reward"] > 0


def test_two_doors_of_one_session_never_train_at_once(url: str, runner: FakeRunner) -> None:
    session = rpc(url, "openenv/session/create")["result"]["session_id"]
    with socket_to(url, f"/ws?session_id={session}") as socket:
        ask(socket, {"type": "reset"})
        ask(socket, tool_step("configure_training"))
        runner.gate.clear()
        socket.send(json.dumps(tool_step("run_epochs", num_epochs=3)))
        assert runner.started.acquire(timeout=10)
        run = {"name": "run_epochs", "arguments": {"num_epochs": 1}, "session_id": session}
        refused = rpc(url, "tools/call", **run)
        assert refused["error"]["message"].startswith("busy: run_epochs is in progress")
        status = rpc(url, "tools/call", name="get_training_status", session_id=session)
        assert "in progress" in status["result"]["data"]["message"]
        runner.gate.set()
        finished = json.loads(socket.recv(timeout=10))
        assert finished["data"]["observation"]["result"]["data"]["current_epoch"] == 3
    assert runner.most_at_once == 1


def test_a_silent_session_is_closed_with_a_reason_and_frees_its_place(
    serve: Callable[..., str],
) -> None:
    url = serve(max_sessions=1, session_timeout=0.3)
    with socket_to(url) as socket:
        ask(socket, {"type": "reset"})
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        assert "0.3 s" in closed.value.rcvd.reason
    with socket_to(url) as successor:
        assert ask(successor, {"type": "reset"})["type"] == "observation"


def test_a_silent_session_that_was_opened_over_http_is_reaped(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "STEP_ALLOWANCE", 0.0)
    url = serve(max_sessions=1, session_timeout=0.2)
    assert "result" in rpc(url, "openenv/session/create")
    assert "capacity" in rpc(url, "openenv/session/create")["error"]["message"]
    eventually(lambda: "result" in rpc(url, "openenv/session/create"))  # OpenEnv looks every 5 s


def test_a_session_in_the_middle_of_a_step_is_not_silent(
    serve: Callable[..., str], runner: FakeRunner
) -> None:
    url = serve(session_timeout=0.2)
    with socket_to(url) as socket:
        ask(socket, {"type": "reset"})
        ask(socket, tool_step("configure_training"))
        runner.gate.clear()
        socket.send(json.dumps(tool_step("run_epochs", num_epochs=3)))
        assert runner.started.acquire(timeout=10)
        time.sleep(0.6)
        runner.gate.set()
        answer = json.loads(socket.recv(timeout=10))
        assert answer["data"]["observation"]["result"]["data"]["current_epoch"] == 3


def test_beyond_capacity_a_clear_refusal(serve: Callable[..., str]) -> None:
    url = serve(max_sessions=1)
    with socket_to(url) as first, socket_to(url) as second:
        ask(first, {"type": "reset"})
        refusal = json.loads(second.recv(timeout=10))
        assert refusal["data"]["code"] == "CAPACITY_REACHED"
        assert ask(first, tool_step("configure_training"))["data"]["done"] is False


def test_sessions_are_apart_and_status_never_waits(url: str, runner: FakeRunner) -> None:
    """More trainings than the usual worker threads, all held: everyone else is served."""
    sessions = 48
    with ThreadPoolExecutor(sessions) as pool:
        envs = [MLTrainerEnv(base_url=url).sync() for _ in range(sessions)]
        try:
            for index, env in enumerate(envs):
                env.connect()
                env.reset(seed=index)
                env.call_tool("configure_training")
            runner.gate.clear()
            runs = [pool.submit(env.call_tool, "run_epochs", num_epochs=2) for env in envs]
            for _ in range(sessions):
                assert runner.started.acquire(timeout=10)
            assert httpx.get(url + "/health", timeout=5).json() == {"status": "healthy"}
            with MLTrainerEnv(base_url=url) as late:
                assert late.reset(seed=sessions).done is False
                assert late.call_tool("configure_training").tool_calls_left == 49
            runner.gate.set()
            assert [run.result().current_epoch for run in runs] == [2] * sessions
            assert [env.state().seed for env in envs] == list(range(sessions))
        finally:
            runner.gate.set()
            for env in envs:
                env.close()


# Start and stop ---------------------------------------------------------------------------------


def test_health_answers_while_the_data_is_still_being_prepared() -> None:
    ready = threading.Event()
    started = threading.Event()

    def warm_up() -> None:
        started.set()
        ready.wait(10)

    environment = partial(MLTrainerEnvironment, FakeRunner())
    with serving(build(environment, Settings(), warm_up)) as url:
        try:
            eventually(started.is_set)
            assert httpx.get(url + "/health").json() == {"status": "healthy"}
        finally:
            ready.set()


def test_stopping_the_server_stops_the_trainings(runner: FakeRunner) -> None:
    def slow(epoch: int, plan: Any) -> tuple[float, float, float]:
        time.sleep(0.2)
        return 1.0, 0.5, 0.0

    runner.script = slow
    environment = partial(MLTrainerEnvironment, runner)
    with ExitStack() as clients:  # they outlive the server
        with serving(build(environment, Settings())) as url:
            socket = clients.enter_context(socket_to(url))
            ask(socket, {"type": "reset"})
            ask(socket, tool_step("configure_training"))
            socket.send(json.dumps(tool_step("run_epochs", num_epochs=20)))
            assert runner.started.acquire(timeout=10)
        advanced = runner.advanced
        assert advanced < 10
        time.sleep(0.5)
        assert runner.advanced <= advanced + 1


@pytest.mark.parametrize("name", ["server.app", "ml_trainer_env.server.app"])
def test_the_application_loads_by_both_names_without_torch(name: str) -> None:
    code = f"""
import sys
from importlib import import_module
app = import_module({name!r}).app
assert {{"/ws", "/mcp", "/health", "/reset"}} <= {{route.path for route in app.routes}}
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)


# Settings ---------------------------------------------------------------------------------------


def test_settings_come_from_the_environment() -> None:
    assert Settings.from_environment({}) == Settings()
    given = {
        "ML_TRAINER_MAX_SESSIONS": "8",
        "ML_TRAINER_SESSION_TIMEOUT": "0",
        "ML_TRAINER_THREADS": "",
        "ML_TRAINER_PRECISION": "bf16",
    }
    expected = Settings(max_sessions=8, session_timeout=0, precision="bf16")
    assert Settings.from_environment(given) == expected


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ML_TRAINER_MAX_SESSIONS", "0"),
        ("ML_TRAINER_THREADS", "many"),
        ("ML_TRAINER_SESSION_TIMEOUT", "nan"),
        ("ML_TRAINER_PRECISION", "fp16"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        Settings.from_environment({variable: value})
