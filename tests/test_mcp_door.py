"""The standard MCP door: real client libraries, over streamable HTTP and stdio."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeRunner, begin
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from live import eventually, serving
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent
from mcp_play import HELLO, ByHand, call, client, refused, run, text_of

from ml_trainer_env.models import MAX_TOOL_CALLS, TASK_IDS, Grade, TrainingStatus
from ml_trainer_env.server import rewards
from ml_trainer_env.server.app import build
from ml_trainer_env.server.connections import Connection
from ml_trainer_env.server.mcp_door import ADDRESS, SESSIONS_PER_PLACE
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.places import Places
from ml_trainer_env.server.settings import Settings
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.tools import TOOLS
from ml_trainer_env.server.visitor import BEGIN

ROOT = Path(__file__).parents[1]
Guests = Places[MLTrainerEnvironment]


@pytest.fixture
def places() -> Guests:
    return Places(2)


@pytest.fixture
def serve_places(runner: FakeRunner, places: Guests) -> Iterator[Callable[..., str]]:
    """Servers whose doors share `places`."""
    with ExitStack() as servers:

        def start(**settings: Any) -> str:
            environment = partial(MLTrainerEnvironment, runner, begin, places=places)
            return servers.enter_context(serving(build(environment, Settings(**settings))))

        yield start
        runner.gate.set()


def request(number: int, method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def tool_call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    return request(number, "tools/call", name=name, arguments=arguments)


# An episode ----------------------------------------------------------------------------------


def test_an_episode_with_fastmcps_client(url: str) -> None:
    reported: list[tuple[float, float | None, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        reported.append((progress, total, message))

    async def scenario() -> Grade | None:
        async with client(url, progress_handler=note) as session:
            opened = await call(session, BEGIN, task_id="hard_cifar", seed=3)
            assert TASKS["hard_cifar"].goal in opened.message
            configured = await call(session, "configure_training", optimizer="sgd")
            assert configured.current_config is not None
            assert configured.current_config.optimizer == "sgd"
            assert reported == []  # nothing was trained yet
            trained = await call(session, "run_epochs", num_epochs=5)
            assert (trained.current_epoch, trained.epochs_run) == (5, 5)
            assert (await call(session, "get_training_status")).current_epoch == 5
            return (await call(session, "submit_model")).grade

    grade = run(scenario)
    assert grade is not None
    assert grade.task_id == "hard_cifar"
    assert grade.hidden_test_accuracy is not None
    assert [(progress, total) for progress, total, _ in reported] == [(n, 5) for n in range(1, 6)]
    assert reported[1][2] == "epoch 2 of 60: val accuracy 0.8000"


def test_an_episode_with_the_reference_client(url: str) -> None:
    reported: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        reported.append(progress)

    async def scenario() -> None:
        async with (
            streamable_http_client(url + ADDRESS) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            welcome = await session.initialize()
            assert BEGIN in (welcome.instructions or "")
            await session.call_tool(BEGIN, {"task_id": "easy_mnist"})
            await session.call_tool("configure_training", {})
            trained = await session.call_tool(
                "run_epochs", {"num_epochs": 10}, progress_callback=note
            )
            assert isinstance(trained.content[0], TextContent)
            assert json.loads(trained.content[0].text) == trained.structuredContent
            ended = await session.call_tool("submit_model", {})
            assert ended.structuredContent is not None
            assert ended.structuredContent["grade"]["score"] > 0

    run(scenario)
    assert reported == [*range(1, 11)]


def test_the_tools_are_those_of_the_table_and_one_more(url: str) -> None:
    async def scenario() -> list[Any]:
        async with client(url) as session:
            return await session.list_tools()

    listed = {tool.name: tool for tool in run(scenario)}
    assert list(listed) == [BEGIN, *TOOLS]
    for name, spec in TOOLS.items():
        assert listed[name].description == spec.description
        assert listed[name].inputSchema == spec.input_schema
    begin_schema = listed[BEGIN].inputSchema
    assert begin_schema["properties"]["task_id"]["enum"] == list(TASK_IDS)
    assert set(begin_schema["properties"]) == {"task_id", "seed"}
    outputs = [tool.outputSchema["properties"] for tool in listed.values()]
    assert all(set(output) == set(TrainingStatus.model_fields) for output in outputs)


def test_begin_episode_exists_at_no_other_door(url: str) -> None:
    request = {"jsonrpc": "2.0", "method": "tools/list", "params": {}, "id": 1}
    listed = httpx.post(url + "/mcp", json=request).json()["result"]["tools"]
    assert BEGIN not in {tool["name"] for tool in listed}


def test_another_beginning_abandons_the_episode(url: str) -> None:
    async def scenario() -> None:
        async with client(url) as session:
            await call(session, BEGIN, task_id="easy_mnist")
            await call(session, "configure_training")
            await call(session, "run_epochs", num_epochs=4)
            opened = await call(session, BEGIN, task_id="medium_fashion")
            assert (opened.task_id, opened.current_epoch) == ("medium_fashion", 0)
            assert opened.tool_calls_left == MAX_TOOL_CALLS

    run(scenario)


def test_sessions_are_independent(url: str) -> None:
    async def scenario() -> None:
        async with client(url) as one, client(url) as other:
            await call(one, BEGIN, task_id="easy_mnist")
            assert "no episode has begun" in await refused(other, "get_training_status")
            await call(other, BEGIN, task_id="hard_cifar")
            await call(one, "configure_training")
            await call(one, "run_epochs", num_epochs=2)
            assert (await call(one, "get_training_status")).current_epoch == 2
            untouched = await call(other, "get_training_status")
            assert (untouched.task_id, untouched.current_epoch) == ("hard_cifar", 0)

    run(scenario)


def test_only_what_remains_of_the_budget_is_reported_as_total(url: str) -> None:
    totals: list[float | None] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        totals.append(total)

    async def scenario() -> None:
        async with client(url, progress_handler=note) as session:
            await call(session, BEGIN, task_id="hard_cifar")
            await call(session, "configure_training")
            for _ in range(2):
                await call(session, "run_epochs", num_epochs=20)
            await call(session, "run_epochs", num_epochs=19)
            totals.clear()
            await call(session, "run_epochs", num_epochs=20)

    run(scenario)
    assert totals == [1]


# Mistakes ------------------------------------------------------------------------------------


def test_a_mistake_is_an_answer_that_says_what_is_allowed(url: str) -> None:
    async def scenario() -> None:
        async with client(url) as session:
            assert f"call {BEGIN} first" in await refused(session, "run_epochs", num_epochs=1)
            assert "task_id: must be one of" in await refused(session, BEGIN, task_id="imagenet")
            assert "seed: must be a whole number" in await refused(session, BEGIN, seed=-1)
            assert '"fork_of": unknown' in await refused(session, BEGIN, fork_of="x")
            await call(session, BEGIN)
            assert "call configure_training first" in await refused(
                session, "run_epochs", num_epochs=1
            )
            message = await refused(session, "configure_training", learning_rate=0, color="red")
            assert "learning_rate: must be a number with 0 <" in message
            assert '"color": unknown' in message
            assert "Unknown tool" in await refused(session, "rm")
            assert (await call(session, "get_training_status")).tool_calls_left == MAX_TOOL_CALLS

    run(scenario)


def test_our_mistake_is_told_without_its_details(
    url: str, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise FileNotFoundError("/home/someone/secret")

    async def scenario() -> str:
        async with client(url) as session:
            await call(session, BEGIN)
            await call(session, "configure_training")
            monkeypatch.setattr(runner, "script", broken)
            return await refused(session, "run_epochs", num_epochs=1)

    assert run(scenario) == "the server failed; the reason is in its log"


# Places and silence --------------------------------------------------------------------------


def test_a_session_has_a_place_from_its_first_episode_to_its_end(
    serve_places: Callable[..., str], places: Guests
) -> None:
    url = serve_places()

    async def scenario() -> None:
        async with client(url) as session:
            await session.list_tools()
            assert places.guests() == ()
            await call(session, BEGIN)
            await call(session, BEGIN)
            assert len(places.guests()) == 1

    run(scenario)
    eventually(lambda: places.guests() == ())


def test_the_one_beyond_the_limit_is_told_when_to_try_again(
    serve_places: Callable[..., str],
) -> None:
    url = serve_places()

    async def scenario() -> None:
        async with client(url) as one, client(url) as two, client(url) as three:
            await call(one, BEGIN)
            await call(two, BEGIN)
            assert "try again in about" in await refused(three, BEGIN)
            assert "no episode has begun" in await refused(three, "get_training_status")

    run(scenario)


def test_who_falls_silent_loses_the_place_and_may_begin_again(
    serve_places: Callable[..., str], places: Guests
) -> None:
    url = serve_places(session_timeout=0.2)

    async def scenario() -> None:
        async with client(url) as session:
            await call(session, BEGIN)
            await asyncio.to_thread(eventually, lambda: places.guests() == ())
            message = await refused(session, "get_training_status")
            assert "nothing was asked for 0.2 s" in message
            assert BEGIN in message
            assert (await call(session, BEGIN)).current_epoch == 0

    run(scenario)


def test_a_long_training_is_not_silence(
    serve_places: Callable[..., str], places: Guests, runner: FakeRunner
) -> None:
    url = serve_places(session_timeout=0.2)

    async def scenario() -> None:
        async with client(url) as session:
            await call(session, BEGIN)
            await call(session, "configure_training")
            runner.gate.clear()
            training = asyncio.create_task(call(session, "run_epochs", num_epochs=1))
            await asyncio.to_thread(runner.started.acquire, timeout=15)
            await asyncio.sleep(0.5)
            assert len(places.guests()) == 1
            runner.gate.set()
            assert (await training).current_epoch == 1

    run(scenario)


# Clients that go away --------------------------------------------------------------------------


async def _hold_a_training(session: Client[Any], runner: FakeRunner) -> asyncio.Task[Any]:
    """A call of run_epochs that is held in its first epoch."""
    await call(session, BEGIN)
    await call(session, "configure_training")
    runner.gate.clear()
    training = asyncio.create_task(session.call_tool("run_epochs", {"num_epochs": 20}))
    await asyncio.to_thread(runner.started.acquire, timeout=15)
    return training


def test_a_cancelled_call_stops_at_the_next_epoch(url: str, runner: FakeRunner) -> None:
    async def scenario() -> None:
        async with client(url) as session:
            training = await _hold_a_training(session, runner)
            await session.cancel(session.session._request_id - 1, "changed my mind")
            with pytest.raises(Exception, match="ancelled"):
                await training
            runner.gate.set()
            await call(session, BEGIN)  # waits until nothing of the episode before it runs

    run(scenario)
    assert runner.advanced == 1


def test_a_client_that_vanishes_stops_its_training(
    serve_places: Callable[..., str], places: Guests, runner: FakeRunner
) -> None:
    url = serve_places(session_timeout=0.2)

    async def scenario() -> None:
        async with client(url) as session:
            training = await _hold_a_training(session, runner)
            training.cancel()

    run(scenario)
    runner.gate.set()
    eventually(lambda: places.guests() == ())
    assert runner.advanced == 1


def test_a_client_whose_connection_breaks_stops_its_training_and_may_go_on(
    url: str, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose, noticed = Connection.lose, threading.Event()
    with ByHand(url) as session:
        session.call(BEGIN)
        session.call("configure_training")
        runner.gate.clear()
        training = tool_call(99, "run_epochs", num_epochs=20)
        with session.http.stream("POST", ADDRESS, json=training):  # which closes the connection
            assert runner.started.acquire(timeout=15)
            monkeypatch.setattr(Connection, "lose", lambda it: (lose(it), noticed.set()))
        assert noticed.wait(15)
        runner.gate.set()
        eventually(lambda: "1 of 100 epochs done" in session.call("get_training_status").text)
    assert runner.advanced == 1


def test_an_ended_session_is_unknown(url: str) -> None:
    with ByHand(url) as session:
        assert session.works()
        assert session.end().status_code == 200
        assert session.ask("ping", {}).status_code == 404


def test_a_session_without_any_request_is_ended(serve: Callable[..., str]) -> None:
    with ByHand(serve(session_timeout=0.2)) as session:

        def is_gone() -> bool:
            time.sleep(0.3)  # asking keeps it open
            return session.ask("ping", {}).status_code == 404

        eventually(is_gone)


def test_sessions_are_limited_too(serve: Callable[..., str]) -> None:
    with ByHand(serve(max_sessions=1)) as session:
        del session.http.headers["mcp-session-id"]
        opened = [session.open().status_code for _ in range(SESSIONS_PER_PLACE)]
    assert opened == [200] * (SESSIONS_PER_PLACE - 1) + [503]


# Resources and the prompt ------------------------------------------------------------------------


def test_the_rules_and_the_tasks_can_be_read(url: str) -> None:
    async def scenario() -> tuple[str, list[Any], list[Any]]:
        async with client(url) as session:
            listed = {str(resource.uri) for resource in await session.list_resources()}
            assert listed == {"ml-trainer://rules", "ml-trainer://tasks"}
            rules = text_of((await session.read_resource("ml-trainer://rules"))[0])
            tasks = json.loads(text_of((await session.read_resource("ml-trainer://tasks"))[0]))
            each = [
                json.loads(text_of((await session.read_resource(f"ml-trainer://tasks/{name}"))[0]))
                for name in TASK_IDS
            ]
            with pytest.raises(Exception, match=r"no task is named .*the tasks are easy_mnist"):
                await session.read_resource("ml-trainer://tasks/imagenet")
            return rules, tasks, each

    rules, tasks, each = run(scenario)
    assert [task["id"] for task in tasks] == list(TASK_IDS)
    assert tasks == each == [task.card for task in TASKS.values()]
    for text in (*TOOLS, *(task.goal for task in TASKS.values()), str(rewards.TOLERATED_GAP)):
        assert text in rules


def test_the_prompt_starts_an_agent_off(url: str) -> None:
    async def scenario() -> tuple[str, list[Any]]:
        async with client(url) as session:
            prompts = await session.list_prompts()
            given = await session.get_prompt("play", {"task_id": "hard_cifar", "seed": "7"})
            for bad in ({"task_id": "imagenet"}, {"seed": "soon"}, {"seed": "-1"}):
                with pytest.raises(Exception, match="must be"):
                    await session.get_prompt("play", bad)
            await session.get_prompt("play")
            return text_of(given.messages[0].content), prompts

    text, (prompt,) = run(scenario)
    assert TASKS["hard_cifar"].goal in text
    assert 'task_id="hard_cifar" and seed=7' in text
    assert {argument.name for argument in prompt.arguments} == {"task_id", "seed"}


# Standard input and output -----------------------------------------------------------------------


def test_a_desktop_client_plays_for_real_over_stdio() -> None:
    reported: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        reported.append(progress)

    async def scenario() -> Grade | None:
        transport = StdioTransport(sys.executable, ["-m", "ml_trainer_env.cli", "mcp"])
        async with Client(transport, progress_handler=note, init_timeout=60) as session:
            await call(session, BEGIN, task_id="easy_mnist")
            await call(session, "configure_training", learning_rate=0.002)
            trained = await call(session, "run_epochs", num_epochs=3)
            assert trained.val_accuracy is not None
            assert trained.val_accuracy > 0.8
            return (await call(session, "submit_model")).grade

    grade = run(scenario, seconds=100)
    assert grade is not None
    assert grade.hidden_test_accuracy is not None
    assert grade.hidden_test_accuracy > 0.8
    assert reported == [1, 2, 3]


@contextmanager
def over_a_pipe() -> Iterator[subprocess.Popen[str]]:
    """The server with both ends of the conversation in our hands."""
    command = [sys.executable, "-m", "ml_trainer_env.server.mcp_stdio"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as server:
        try:
            yield server
        finally:
            server.kill()


def ask(server: subprocess.Popen[str], *messages: dict[str, Any]) -> None:
    assert server.stdin is not None
    server.stdin.write("".join(json.dumps(message) + "\n" for message in messages))
    server.stdin.flush()


def answer(server: subprocess.Popen[str], number: int) -> dict[str, Any]:
    """The answer to this request. Every line is one of the protocol."""
    assert server.stdout is not None
    for line in server.stdout:
        message = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        if message.get("id") == number:
            return message["result"]
    raise AssertionError("the server ended")


OPENING = (
    request(1, "initialize", **HELLO),
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    tool_call(2, BEGIN, task_id="hard_cifar"),
    tool_call(3, "configure_training"),
)


def test_it_ends_with_its_client_in_the_middle_of_a_training() -> None:
    with over_a_pipe() as server:
        ask(server, {"jsonrpc": "2.0", "surprise": True})
        ask(server, *OPENING[:3])
        assert answer(server, 2)["structuredContent"]["task_id"] == "hard_cifar"
        ask(server, OPENING[3])
        answer(server, 3)
        training = tool_call(4, "run_epochs", num_epochs=20)
        training["params"]["_meta"] = {"progressToken": "first"}
        ask(server, training)
        assert server.stdout is not None
        assert json.loads(server.stdout.readline())["method"] == "notifications/progress"
        assert server.stdin is not None
        server.stdin.close()
        rest = server.stdout.read()
        assert server.wait(30) == 0
        assert '"id":4' not in rest  # 20 epochs take long


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(stop: signal.Signals) -> None:
    with over_a_pipe() as server:
        ask(server, *OPENING[:1])
        answer(server, 1)
        server.send_signal(stop)
        assert server.wait(30) == -stop
