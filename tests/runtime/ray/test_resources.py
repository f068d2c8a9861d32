"""What a node names, so that servers train there."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from ml_trainer_env.server import trainer
from ml_trainer_env.server.runtime.cores import available
from ml_trainer_env.server.runtime.ray.nodes import Nodes, label


def printed(*arguments: str) -> str:
    """What `ml-trainer resources` prints."""
    command = [sys.executable, "-m", "ml_trainer_env.cli", "resources", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize(("arguments", "most"), [((), None), (("--cores", "1"), 1)])
def test_the_command_names_the_engine_one_unit_a_core(
    arguments: tuple[str, ...], most: int | None
) -> None:
    text = printed(*arguments)
    assert json.loads(text) == {label(trainer.engine("fp32")): available(most)}
    assert len(text.splitlines()) == 1  # goes into "$(...)"


def cores_of_a_node(resources: dict[str, float]) -> int:
    """That servers see there."""

    async def seen() -> int:
        nodes = Nodes()
        await nodes.see([{"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0, **resources}}])
        return nodes.cores

    return asyncio.run(seen())


def test_a_node_that_is_started_with_it_is_used() -> None:
    """Ray's own parser is in between."""
    ray = pytest.importorskip("ray._private.utils", reason="the extra `ray`")
    assert cores_of_a_node(ray.parse_resources_json(printed("--cores", "1"), None, None)) == 1
    assert cores_of_a_node({}) == 0
