"""The package for verifiers, in an environment of its own, played by the real library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from adapted import plain
from checkout import ROOT
from endpoint import Endpoint, message
from starlette.responses import Response

from ml_trainer_env.agents.moves import SUBMIT, configure, run

PACKAGE = ROOT / "integrations/verifiers"
MOVES = [configure(learning_rate=0.01), run(20), run(5)]


def streamed(text: str) -> Response:
    """A completion as a stream, which is how the library asks."""
    common: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "m",
    }
    (choice,) = message(text)["choices"]
    said = {"index": 0, "delta": choice["message"], "finish_reason": None}
    ended = {"index": 0, "delta": {}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    chunks = [common | {"choices": [said]}, common | {"choices": [ended], "usage": usage}]
    events = [*map(json.dumps, chunks), "[DONE]"]
    body = "".join(f"data: {event}\n\n" for event in events)
    return Response(body, media_type="text/event-stream")


def replies(*moves: Any) -> list[Response]:
    calls = [json.dumps({"name": tool, "arguments": arguments}) for tool, arguments in moves]
    return [streamed(f"<tool_call>{call}</tool_call>") for call in calls]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment made as the package's README says."""
    folder = tmp_path_factory.mktemp("verifiers")
    python = folder / ".venv/bin/python"
    source = shutil.copytree(PACKAGE, folder / "source")  # it is built where it lies
    for command in (
        [sys.executable, "-m", "venv", folder / ".venv"],
        [python, "-m", "pip", "install", "-qq", "--no-deps", "--require-hashes", "-r",
         source / "requirements.lock"],
        [python, "-m", "pip", "install", "-qq", "--no-deps", source],
    ):  # fmt: skip
        subprocess.run([*map(str, command)], check=True, timeout=280)
    return python.parent


@pytest.mark.network
@pytest.mark.timeout(400)
@pytest.mark.parametrize("ending", [replies(SUBMIT), []], ids=["submitted", "cut off"])
def test_a_rollout_is_rewarded_with_the_return_of_its_episode(
    installed: Path, ending: list[Response], url: str, tmp_path: Path
) -> None:
    talk = [streamed("Let me think."), *replies(MOVES[0]), *replies(run(99)), *replies(*MOVES[1:])]
    limit = [] if ending else ["--env.player.max-turns", str(len(talk))]
    endpoint = Endpoint(*talk, *ending)
    with endpoint.serving():
        subprocess.run(
            [
                *(installed / "vf-eval", "ml-trainer-verifiers", "--no-push", "-o", tmp_path),
                *("--env.taskset.url", url, "--env.taskset.tasks", "medium_fashion"),
                *("--env.player.harness.id", "null", "--env.player.runtime.type", "subprocess"),
                *("--model", "m", "--client.base-url", endpoint.url, "--client.api-key-var", "KEY"),
                *limit,
            ],
            env=os.environ | {"KEY": "k"},
            cwd=tmp_path,
            check=True,
            timeout=110,
        )

    (traces,) = tmp_path.glob("*/traces.jsonl")
    episode = json.loads(traces.read_text())
    assert episode["ok"], episode["errors"]
    (trace,) = episode["traces"]
    expected = plain(url, "medium_fashion", 0, MOVES)
    assert trace["rewards"]["episode_return"]["score"] == pytest.approx(expected.episode_return)
    assert trace["info"]["grade"]["score"] == expected.score
    said = [request["messages"][-1]["content"] for request in endpoint.requests]
    assert "Fashion Item Classifier" in said[0]
    assert said[1].startswith("error: no call")
    assert said[3].startswith("error: num_epochs")
    assert said[4].startswith("trained 20 epochs")
