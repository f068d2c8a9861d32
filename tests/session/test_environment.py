"""The OpenEnv adapter in process: envelopes, tools and their schemas, threads."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeRunner
from fastmcp import Client
from fastmcp.exceptions import ToolError as McpToolError
from live import eventually
from openenv.core.env_server.mcp_types import (
    RESERVED_TOOL_NAMES,
    CallToolAction,
    ListToolsAction,
    ListToolsObservation,
    ToolErrorType,
)
from openenv.core.env_server.serialization import serialize_observation
from play import call, trained

from ml_trainer_env.models import TrainingConfig, TrainingStatus
from ml_trainer_env.server.episode.tools import TOOLS
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.validation import InvalidArguments
from ml_trainer_env.wire import ToolObservation

# Envelopes --------------------------------------------------------------------------------------


def test_a_tool_answers_in_one_shape_with_reward_and_done(env: MLTrainerEnvironment) -> None:
    trained(env)
    observation = call(env, "run_epochs", num_epochs=3)
    assert observation.result is not None
    status = observation.result.structured_content
    assert observation.result.data == observation.status == status
    assert observation.reward == status.reward > 0
    assert observation.done is False
    (block,) = observation.result.content
    assert TrainingStatus.model_validate_json(block.text) == status


def test_the_wire_holds_strict_json_and_the_reward(env: MLTrainerEnvironment) -> None:
    env.reset()
    call(env, "configure_training", learning_rate=10)
    wire = serialize_observation(call(env, "run_epochs", num_epochs=1))
    status = wire["observation"]["result"]["data"]
    assert status["is_diverged"] is True
    assert status["val_loss"] is None
    assert wire["reward"] == status["reward"] == pytest.approx(-0.2)
    assert wire["done"] is status["done"] is False
    assert status["reward_terms"]["divergence"] == pytest.approx(-0.2)
    json.dumps(wire, allow_nan=False)


def test_the_final_reward_is_paid_once(env: MLTrainerEnvironment) -> None:
    trained(env, 20)
    submitted = call(env, "submit_model")
    assert submitted.done
    assert submitted.status is not None
    assert submitted.status.grade is not None
    assert submitted.reward == submitted.status.grade.score > 0
    after = call(env, "get_training_status")
    assert after.status is not None
    assert (after.reward, after.done, after.status.grade) == (0, True, submitted.status.grade)
    again = call(env, "submit_model")
    assert (again.reward, again.done) == (0, True)
    assert again.error is not None


def test_an_error_is_data_of_reward_zero_that_changes_nothing(env: MLTrainerEnvironment) -> None:
    trained(env)
    before = env.state
    for tool, arguments, kind in (
        ("run_epoch", {}, ToolErrorType.TOOL_NOT_FOUND),
        ("run_epochs", {"num_epochs": 21}, ToolErrorType.INVALID_ARGS),
        ("run_epochs", {"epochs": 2}, ToolErrorType.INVALID_ARGS),
    ):
        observation = call(env, tool, **arguments)
        assert observation.error is not None
        assert observation.error.error_type is kind
        assert (observation.result, observation.status) == (None, None)
        assert (observation.reward, observation.done) == (0, False)
    assert env.state == before


def test_tools_before_reset_ask_for_one(env: MLTrainerEnvironment) -> None:
    for tool in TOOLS:
        arguments: dict[str, Any] = {
            "run_epochs": {"num_epochs": 1},
            "adjust_learning_rate": {"new_lr": 0.1},
            "toggle_augmentation": {"enabled": True},
        }.get(tool, {})
        error = call(env, tool, **arguments).error
        assert error is not None
        assert "reset first" in error.message
    assert env.state.step_count == 0


# Tools and their schemas ------------------------------------------------------------------------


def test_listing_the_tools_is_a_free_step(env: MLTrainerEnvironment) -> None:
    trained(env)
    calls_left = env.state.tool_calls_left
    observation = env.step(ListToolsAction())
    assert isinstance(observation, ListToolsObservation)
    assert [tool.name for tool in observation.tools] == list(TOOLS)
    assert (observation.reward, observation.done) == (0, False)
    assert env.state.tool_calls_left == calls_left


def test_the_tools_are_the_specified_six_and_no_name_is_reserved() -> None:
    assert list(TOOLS) == [
        *("configure_training", "run_epochs", "adjust_learning_rate"),
        *("toggle_augmentation", "get_training_status", "submit_model"),
    ]
    assert not RESERVED_TOOL_NAMES & set(TOOLS)


def test_schemas_carry_bounds_choices_defaults_and_descriptions(env: MLTrainerEnvironment) -> None:
    listed = env.step(ListToolsAction())
    assert isinstance(listed, ListToolsObservation)
    schemas = {tool.name: tool.input_schema for tool in listed.tools}
    options = schemas["configure_training"]["properties"]
    assert set(options) == set(TrainingConfig.model_fields)
    assert "required" not in schemas["configure_training"]
    assert options["optimizer"]["enum"] == ["sgd", "adam", "adamw"]
    rate = options["learning_rate"]
    assert (rate["exclusiveMinimum"], rate["maximum"], rate["default"]) == (0, 10, 0.001)
    assert schemas["run_epochs"]["required"] == ["num_epochs"]
    epochs = schemas["run_epochs"]["properties"]["num_epochs"]
    assert (epochs["type"], epochs["minimum"], epochs["maximum"]) == ("integer", 1, 20)
    for schema in schemas.values():
        assert schema["additionalProperties"] is False
        assert all(field["description"] for field in schema.get("properties", {}).values())


def test_a_null_option_counts_as_left_out(env: MLTrainerEnvironment) -> None:
    env.reset()
    call(env, "configure_training", dropout=0.2)
    status = call(env, "configure_training", dropout=None, optimizer="sgd").status
    assert status is not None
    assert status.current_config is not None
    assert (status.current_config.dropout, status.current_config.optimizer) == (0.2, "sgd")
    assert call(env, "toggle_augmentation", enabled=True, strength=None).error is None
    error = call(env, "run_epochs", num_epochs=None).error
    assert error is not None
    assert error.message.startswith("num_epochs: must be a whole number")


def test_a_standard_mcp_client_meets_the_same_rules(env: MLTrainerEnvironment) -> None:
    env.reset()
    server = env.mcp_server
    assert server is not None

    async def scenario() -> None:
        async with Client(server) as client:
            assert [tool.name for tool in await client.list_tools()] == list(TOOLS)
            answer = await client.call_tool("configure_training", {"learning_rate": 0.1})
            assert answer.structured_content is not None
            assert answer.structured_content["current_config"]["learning_rate"] == 0.1
            with pytest.raises(McpToolError, match="num_epochs: must be a whole number with 1 <="):
                await client.call_tool("run_epochs", {"num_epochs": "5"})

    asyncio.run(scenario())
    assert env.state.tool_calls_left == 49


def test_the_tools_are_callables_for_code_mode(env: MLTrainerEnvironment) -> None:
    env.reset()
    tools = env.get_callables()
    assert set(tools) == set(TOOLS)
    tools["configure_training"](optimizer="sgd")
    assert tools["run_epochs"](num_epochs=2).current_epoch == 2
    with pytest.raises(InvalidArguments):
        tools["run_epochs"](num_epochs=0)


# Threads ----------------------------------------------------------------------------------------


def asynchronously(
    env: MLTrainerEnvironment, runner: FakeRunner, then: Callable[[asyncio.Task[Any]], Any]
) -> Any:
    """Run `then(step)` while the step `run_epochs(5)` is held in its first epoch."""
    env.reset()
    call(env, "configure_training")
    runner.gate.clear()

    async def scenario() -> Any:
        action = CallToolAction(tool_name="run_epochs", arguments={"num_epochs": 5})
        step = asyncio.create_task(env.step_async(action))
        assert await asyncio.to_thread(runner.started.acquire, timeout=10)
        return await then(step)

    return asyncio.run(scenario())


def test_training_does_not_block_the_event_loop(
    env: MLTrainerEnvironment, runner: FakeRunner
) -> None:
    async def then(step: asyncio.Task[Any]) -> None:
        status = await env.step_async(CallToolAction(tool_name="get_training_status"))
        assert isinstance(status, ToolObservation)
        assert status.status is not None
        assert "in progress" in status.status.message
        busy = await env.step_async(CallToolAction(tool_name="submit_model"))
        assert isinstance(busy, ToolObservation)
        assert busy.error is not None
        assert busy.error.message.startswith("busy")
        assert not step.done()
        runner.gate.set()
        assert (await step).status.current_epoch == 5

    asynchronously(env, runner, then)


def test_a_cancelled_step_stops_training_at_the_next_epoch(
    env: MLTrainerEnvironment, runner: FakeRunner
) -> None:
    async def then(step: asyncio.Task[Any]) -> None:
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        runner.gate.set()

    asynchronously(env, runner, then)
    eventually(lambda: env.state.current_epoch == 1 and env.state.tool_calls_left == 48)
    assert runner.advanced == 1
    assert call(env, "run_epochs", num_epochs=2).error is None


def test_timeout_stops_training_at_an_epoch_boundary(
    env: MLTrainerEnvironment, runner: FakeRunner
) -> None:
    def slow(epoch: int, plan: Any) -> tuple[float, float, float]:
        time.sleep(0.03)
        return 1.0, 0.5, 0.0

    runner.script = slow
    env.reset()
    call(env, "configure_training")
    action = CallToolAction(tool_name="run_epochs", arguments={"num_epochs": 20})
    observation = env.step(action, timeout_s=0.1)
    assert isinstance(observation, ToolObservation)
    assert observation.status is not None
    assert 1 <= observation.status.epochs_run < 20


def test_reset_during_training_waits_for_the_boundary_and_nothing_leaks(
    env: MLTrainerEnvironment, runner: FakeRunner
) -> None:
    async def then(step: asyncio.Task[Any]) -> None:
        reset = asyncio.create_task(env.reset_async(task_id="medium_fashion"))
        await asyncio.sleep(0.05)
        assert not reset.done()
        assert not step.done()
        runner.gate.set()
        assert (await reset).status.task_id == "medium_fashion"
        assert "reset or closed" in (await step).error.message

    asynchronously(env, runner, then)
    assert runner.advanced == 1
    assert (env.state.current_epoch, env.state.step_count) == (0, 0)
    assert call(env, "configure_training").error is None
    status = call(env, "run_epochs", num_epochs=3).status
    assert status is not None
    assert status.current_epoch == 3
    assert runner.most_at_once == 1


def test_close_during_training_returns_at_once_and_stops_it(
    env: MLTrainerEnvironment, runner: FakeRunner
) -> None:
    async def then(step: asyncio.Task[Any]) -> None:
        env.close()
        assert not step.done()
        runner.gate.set()
        assert "reset or closed" in (await step).error.message

    asynchronously(env, runner, then)
    assert runner.advanced == 1


def test_constructing_a_session_loads_no_torch() -> None:
    code = """
import sys
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
MLTrainerEnvironment().close()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_closed_session_leaves_nothing_to_the_garbage_collector(runner: FakeRunner) -> None:
    """Of a crowd's sessions it would be much at once, and nobody is served meanwhile."""
    env = MLTrainerEnvironment(runner)
    env.reset()
    call(env, "run_epochs", num_epochs=1)
    session = weakref.ref(env)
    gc.disable()
    try:
        env.close()
        assert env.mcp_server is None
        del env
        assert session() is None
    finally:
        gc.enable()
