"""The standard MCP door: real client libraries, over streamable HTTP and stdio."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fakes import FakeRunner
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent
from mcp_play import call, client, refused, run, text_of

from ml_trainer_env.models import (
    MAX_TOOL_CALLS,
    Grade,
    TrainingStatus,
)
from ml_trainer_env.server.doors.mcp.door import ADDRESS
from ml_trainer_env.server.doors.mcp.visitor import BEGIN
from ml_trainer_env.server.episode import rewards
from ml_trainer_env.server.episode.tools import TOOLS
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.task_ids import CLASSIC_IDS, FAMILIES, PATTERN

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
    classic, instance, family = begin_schema["properties"]["task_id"]["anyOf"]
    assert classic["enum"] == list(CLASSIC_IDS)
    assert instance["pattern"] == PATTERN
    assert family["enum"] == list(FAMILIES)
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
                for name in CLASSIC_IDS
            ]
            with pytest.raises(Exception, match=r"no task is named .*the tasks are easy_mnist"):
                await session.read_resource("ml-trainer://tasks/imagenet")
            return rules, tasks, each

    rules, tasks, each = run(scenario)
    assert [task["id"] for task in tasks] == list(CLASSIC_IDS)
    assert tasks == each == [task.card for task in TASKS.values()]
    for text in (*TOOLS, *(task.goal for task in TASKS.values()), str(rewards.TOLERATED_GAP)):
        assert text in rules


def test_the_prompt_starts_an_agent_off(url: str) -> None:
    async def scenario() -> tuple[str, list[Any]]:
        async with client(url) as session:
            prompts = await session.list_prompts()
            given = await session.get_prompt("play", {"task_id": "hard_cifar", "seed": "7.0"})
            for bad in ({"task_id": "imagenet"}, {"seed": "soon"}, {"seed": "-1"}, {"seed": "1.5"}):
                with pytest.raises(Exception, match="must be"):
                    await session.get_prompt("play", bad)
            await session.get_prompt("play")
            return text_of(given.messages[0].content), prompts

    text, (prompt,) = run(scenario)
    assert TASKS["hard_cifar"].goal in text
    assert 'task_id="hard_cifar" and seed=7' in text
    assert {argument.name for argument in prompt.arguments} == {"task_id", "seed"}
