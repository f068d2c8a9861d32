"""What each door lists and answers where the task is a cluster: the tools are the episode's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fakes import FakeRunner
from mcp_play import call, client, refused, run
from openenv.core.mcp_client import MCPToolClient

from ml_trainer_env.client import MLTrainerEnv
from ml_trainer_env.server.doors.mcp.visitor import BEGIN
from ml_trainer_env.server.episode.tools import CLUSTER_TOOLS, TOOLS
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.task_ids import INSTANCES

TASK = "cluster/eval/0"


def test_a_session_over_websocket_is_listed_six_ten_and_six_again(url: str) -> None:
    with MLTrainerEnv(base_url=url).sync() as env:
        names = lambda: [tool.name for tool in env.list_tools()]  # noqa: E731
        assert names() == [*TOOLS]
        opened = env.reset(task_id=TASK).observation.status
        assert opened.cluster is not None
        assert names() == [*CLUSTER_TOOLS]
        listed = {tool.name: tool.input_schema for tool in env.list_tools()}
        assert all(listed[name] == spec.input_schema for name, spec in CLUSTER_TOOLS.items())
        env.reset(task_id="easy_mnist")
        assert names() == [*TOOLS]


def test_openenvs_own_mcp_lists_by_the_session(url: str) -> None:
    with MCPToolClient(base_url=url).sync() as env:
        env.reset(task_id=TASK)
        assert [tool.name for tool in env.list_tools()] == [*CLUSTER_TOOLS]
        answer = env.call_tool("configure_training", checkpoint_every=20)
        assert answer["cluster"]["config"]["checkpoint_every"] == 20


def test_a_standard_mcp_client_is_told_that_its_list_has_changed(url: str) -> None:
    told: list[str] = []

    async def hear(message: Any) -> None:
        told.append(type(getattr(message, "root", message)).__name__)

    async def scenario() -> None:
        async with client(url, message_handler=hear) as session:
            names: Callable[[], Any] = session.list_tools
            assert [tool.name for tool in await names()] == [BEGIN, *TOOLS]
            assert "only clusters have" in await refused(session, "run_diagnostic", kind="replay")
            opened = await call(session, BEGIN, task_id=TASK)
            assert opened.cluster is not None
            assert told.count("ToolListChangedNotification") == 1
            listed = {tool.name: tool for tool in await names()}
            assert list(listed) == [BEGIN, *CLUSTER_TOOLS]
            schema = CLUSTER_TOOLS["configure_training"].input_schema
            assert listed["configure_training"].inputSchema == schema
            await call(session, BEGIN, task_id="cluster/eval/1")
            assert told.count("ToolListChangedNotification") == 1
            await call(session, BEGIN, task_id="easy_mnist")
            assert told.count("ToolListChangedNotification") == 2

    run(scenario)


def test_a_language_model_is_answered_in_few_words_and_a_program_in_full(
    runner: FakeRunner,
) -> None:
    env = MLTrainerEnvironment(runner)
    env.reset(task_id=TASK)
    answer = env.call("toggle_augmentation", {"enabled": True})
    assert answer.cluster is not None
    assert str(answer).startswith("augmentation on, strength 0.5; 39 tool calls left\nstep 0")
    env.close()


def test_the_family_alone_gives_an_instance_of_train(runner: FakeRunner) -> None:
    env = MLTrainerEnvironment(runner)
    after_the_last = INSTANCES["cluster"]["train"] + 7
    assert env.reset(task_id="cluster", seed=27).status.task_id == "cluster/train/27"
    assert env.reset(task_id="cluster", seed=after_the_last).status.task_id == "cluster/train/7"
    env.close()
