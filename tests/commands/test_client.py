"""The client: the specification's snippet, its three ways of use, typed answers, clear errors."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from live import eventually
from openenv.core.env_server.mcp_types import CallToolAction
from websockets.protocol import State

import ml_trainer_env
from ml_trainer_env import (
    EpisodeState,
    MLTrainerEnv,
    SessionLost,
    StatusObservation,
    ToolCallError,
    ToolObservation,
    TrainingStatus,
)
from ml_trainer_env.client import MESSAGE_TIMEOUT_S

SNIPPET = """
from ml_trainer_env import MLTrainerEnv
with MLTrainerEnv(base_url="http://localhost:8000") as env:
    env.reset(task_id="easy_mnist")
    tools = env.list_tools()
    result = env.call_tool("configure_training", optimizer="adam", learning_rate=0.001, batch_size=64)
    result = env.call_tool("run_epochs", num_epochs=10)
    print(result)   # real training metrics
    result = env.call_tool("submit_model")
    print(result)   # final score
"""  # noqa: E501 - verbatim


def test_the_snippet_of_the_specification(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(SNIPPET.replace("http://localhost:8000", url), names)
    out = capsys.readouterr().out
    assert "trained 10 epochs" in out
    assert "val loss 0.1818, accuracy 0.9455" in out
    assert re.search(r"Score 0\.689 = .* Hidden-test accuracy 0\.8125", out)
    tools = names["tools"]
    assert isinstance(tools, list)
    assert len(tools) == 6


def test_sync_gives_the_same(url: str) -> None:
    with MLTrainerEnv(base_url=url).sync() as env:
        env.reset()
        assert env.call_tool("configure_training").tool_calls_left == 49
        assert env.call_tool("run_epochs", num_epochs=2).current_epoch == 2


def test_asynchronous_use(url: str) -> None:
    async def episode() -> TrainingStatus:
        async with MLTrainerEnv(base_url=url) as env:
            await env.reset(task_id="medium_fashion", seed=1)
            assert len(await env.list_tools()) == 6
            await env.call_tool("configure_training", optimizer="sgd")
            await env.call_tool("run_epochs", num_epochs=3)
            return await env.call_tool("submit_model")

    status = asyncio.run(episode())
    assert status.done
    assert status.grade is not None
    assert status.task_id == "medium_fashion"


def test_answers_are_typed_and_carry_reward_and_done(url: str) -> None:
    with MLTrainerEnv(base_url=url) as env:
        reset = env.reset(seed=5)
        assert isinstance(reset.observation, StatusObservation)
        assert reset.observation.status.max_epochs == 100
        env.call_tool("configure_training")
        action = CallToolAction(tool_name="run_epochs", arguments={"num_epochs": 4})
        step = env.step(action)
        assert isinstance(step.observation, ToolObservation)
        assert isinstance(step.observation.status, TrainingStatus)
        assert step.reward == step.observation.status.reward > 0
        status = env.call_tool("submit_model")
        assert isinstance(status, TrainingStatus)
        assert status.grade is not None
        assert (status.done, status.reward) == (True, status.grade.score)
        state = env.state()
        assert isinstance(state, EpisodeState)
        assert (state.seed, state.step_count, state.done) == (5, 3, True)


def test_call_tool_raises_the_message_verbatim_and_step_returns_it(url: str) -> None:
    with MLTrainerEnv(base_url=url) as env:
        env.reset()
        said = "learning_rate: must be a number with 0 < learning_rate <= 10; got -1"
        with pytest.raises(ToolCallError) as caught:
            env.call_tool("configure_training", learning_rate=-1)
        assert str(caught.value) == said
        action = CallToolAction(tool_name="configure_training", arguments={"learning_rate": -1})
        step = env.step(action)
        assert isinstance(step.observation, ToolObservation)
        assert step.observation.error is not None
        assert (step.observation.error.message, step.reward, step.done) == (said, 0, False)
        with pytest.raises(RuntimeError, match="hard_cifar"):
            env.reset(task_id="imagenet")
        assert env.call_tool("configure_training").tool_calls_left == 49


def test_new_session_is_a_session_of_its_own(url: str) -> None:
    with MLTrainerEnv(base_url=url) as env:
        env.reset(seed=1)
        other = env.new_session()
        other.reset(seed=2)
        assert (env.state().seed, other.state().seed) == (1, 2)


def test_a_client_that_vanishes_leaves_nothing_behind(serve: Callable[..., str]) -> None:
    url = serve(max_sessions=1)

    async def vanish() -> None:
        env = MLTrainerEnv(base_url=url)
        await env.reset()
        assert env._ws is not None
        env._ws.transport.abort()

    asyncio.run(vanish())

    def place_is_free() -> bool:
        try:
            with MLTrainerEnv(base_url=url) as env:
                return not env.reset().done
        except RuntimeError:  # at capacity
            return False

    eventually(place_is_free)


# Lost sessions --------------------------------------------------------------------------------


def closed_by_the_server(env: Any, url: str) -> None:
    """As it looks from here: the connection breaks off."""
    socket = env.async_client._ws
    env._loop.call_soon_threadsafe(socket.transport.abort)
    eventually(lambda: socket.state is State.CLOSED)


def closed_by_us(env: Any, url: str) -> None:
    env.close()


def disconnected(env: Any, url: str) -> None:
    env.disconnect()


CALLS: dict[str, Callable[[Any], object]] = {
    "call_tool": lambda env: env.call_tool("run_epochs", num_epochs=1),
    "status": lambda env: env.call_tool("get_training_status"),
    "step": lambda env: env.step(CallToolAction(tool_name="submit_model", arguments={})),
    "state": lambda env: env.state(),
    "list_tools": lambda env: env.list_tools(use_cache=False),
}


@pytest.mark.parametrize("lose", [closed_by_the_server, closed_by_us, disconnected])
@pytest.mark.parametrize("name", CALLS)
def test_a_lost_session_is_told_and_never_replaced_silently(
    url: str, lose: Callable[[Any, str], None], name: str
) -> None:
    env = MLTrainerEnv(base_url=url).sync()
    env.reset(seed=1)
    lose(env, url)
    for _ in range(2):
        with pytest.raises(SessionLost, match=r"session was lost.*resume\(\)"):
            CALLS[name](env)
    env.reset(seed=2)  # one that is asked for
    assert env.state().seed == 2
    env.close()


def test_a_silent_session_is_told_why_it_was_closed(serve: Callable[..., str]) -> None:
    env: Any = MLTrainerEnv(base_url=serve(session_timeout=0.2)).sync()
    env.reset()
    eventually(lambda: env.async_client._ws.state is State.CLOSED)
    with pytest.raises(SessionLost):
        env.call_tool("configure_training")
    env.close()


def test_a_failed_reset_on_a_new_connection_does_not_hide_the_loss(url: str) -> None:
    env = MLTrainerEnv(base_url=url).sync()
    env.reset()
    closed_by_the_server(env, url)
    with pytest.raises(RuntimeError, match="task_id"):
        env.reset(task_id="imagenet")
    with pytest.raises(SessionLost):
        env.call_tool("configure_training")
    env.close()


def test_a_lost_session_is_resumed_where_it_stood(url: str) -> None:
    env = MLTrainerEnv(base_url=url).sync()
    with MLTrainerEnv(base_url=url) as fresh, pytest.raises(ValueError, match="no episode"):
        fresh.resume()
    env.reset(seed=1)
    env.call_tool("configure_training")
    env.call_tool("run_epochs", num_epochs=3)
    other = MLTrainerEnv(base_url=url).sync()
    other.resume(env.state().key)  # the server has not noticed any loss: the first one loses it
    assert other.call_tool("run_epochs", num_epochs=1).current_epoch == 4
    with pytest.raises(ToolCallError, match="another session"):
        env.call_tool("run_epochs", num_epochs=1)
    env.resume()
    assert env.call_tool("run_epochs", num_epochs=1).current_epoch == 5
    env.close()
    other.close()


@pytest.mark.parametrize("name", ["name", "self", "tool", "tool_name", "arguments", "action"])
def test_whatever_an_argument_is_called_the_tool_answers(url: str, name: str) -> None:
    with MLTrainerEnv(base_url=url) as env:
        env.reset()
        with pytest.raises(ToolCallError, match=f'"{name}": unknown; run_epochs takes num_epochs'):
            env.call_tool("run_epochs", **{name: "x"})


def test_a_message_may_take_minutes() -> None:
    assert MESSAGE_TIMEOUT_S >= 600
    assert inspect.signature(MLTrainerEnv).parameters["message_timeout_s"].default >= 600


def test_public_names_are_those_that_exist() -> None:
    assert ml_trainer_env.__all__ == sorted(ml_trainer_env.__all__)
    for name in ml_trainer_env.__all__:
        assert getattr(ml_trainer_env, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        ml_trainer_env.no_such_name  # noqa: B018
    assert set(ml_trainer_env.__all__) <= set(dir(ml_trainer_env))


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import ml_trainer_env", ("torch", "openenv", "pydantic", "ml_trainer_env.server")),
        ("import ml_trainer_env.models", ("torch", "openenv", "ml_trainer_env.server")),
        ("from ml_trainer_env import TrainingConfig", ("torch", "openenv")),
        ("from ml_trainer_env import MLTrainerEnv", ("torch", "ml_trainer_env.server")),
    ],
)
def test_importing_loads_no_more_than_it_needs(code: str, absent: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys\nassert not set({absent!r}) & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
