"""The files for NeMo Gym, against the steps that its OpenEnv resources server takes."""

from __future__ import annotations

import asyncio
import importlib.util
from importlib import import_module
from typing import Any

import pytest
import yaml
from adapted import plain
from checkout import ROOT
from openenv.core.env_server.mcp_types import ListToolsAction

from ml_trainer_env.agents.moves import SUBMIT, Move, configure, run

FOLDER = ROOT / "integrations/nemo_gym"
CONFIG: dict[str, Any] = yaml.safe_load((FOLDER / "ml_trainer.yaml").read_text())
SERVER: dict[str, Any] = CONFIG["ml_trainer_resources_server"]["resources_servers"]["openenv"]


def imported(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


async def rollout(moves: list[Move]) -> tuple[float, bool]:
    """In its event loop; an argument that the model leaves out is passed as null."""
    env = imported(SERVER["env_class"])()
    total = env.reset(**SERVER["reset_kwargs"]).reward or 0.0
    listed = {tool.name: tool for tool in env.step(ListToolsAction()).tools}
    done = False
    for tool, arguments in moves:
        names = listed[tool].input_schema.get("properties", {})
        action = imported(SERVER["action_class"])(
            tool_name=tool, arguments=dict.fromkeys(names) | arguments
        )
        observation = env.step(action)
        assert observation.error is None
        total += float(observation.reward)
        done = observation.done
    env.close()
    return total, done


def test_a_rollout_of_the_configuration_sums_to_the_return() -> None:
    moves = [configure(optimizer="adamw", learning_rate=0.003), run(3), run(2), SUBMIT]
    of = SERVER["reset_kwargs"]

    total, done = asyncio.run(rollout(moves))

    assert done
    assert total == pytest.approx(plain(None, of["task_id"], of["seed"], moves).episode_return)


def test_the_agent_and_the_server_name_each_other() -> None:
    agent = CONFIG["ml_trainer_simple_agent"]["responses_api_agents"]["simple_agent"]
    assert agent["resources_server"]["name"] in CONFIG
    assert SERVER["is_mcp"] is True


def test_a_row_has_the_task_and_the_tools() -> None:
    spec = importlib.util.spec_from_file_location("rows", FOLDER / "rows.py")
    assert spec is not None
    assert spec.loader is not None
    rows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rows)

    asked = rows.row(SERVER["reset_kwargs"]["task_id"])["responses_create_params"]

    assert "Varied MLP train/17" in asked["input"][-1]["content"]
    assert {tool["name"] for tool in asked["tools"]} >= {"configure_training", "submit_model"}
    assert all(tool["type"] == "function" for tool in asked["tools"])
