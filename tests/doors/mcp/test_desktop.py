"""What `ml-trainer mcp --config` prints is started as it is, from nowhere and with nothing set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from mcp_play import call, run

from ml_trainer_env.server import datasets
from ml_trainer_env.server.doors.mcp import desktop
from ml_trainer_env.server.doors.mcp.desktop import NotInstalled
from ml_trainer_env.server.doors.mcp.visitor import BEGIN
from ml_trainer_env.server.episode.tools import TOOLS
from ml_trainer_env.server.settings import SettingsError

COMMAND = [sys.executable, "-m", "ml_trainer_env.cli", "mcp", "--config"]


def entry(**variables: str) -> Any:
    return desktop.configuration(variables)["mcpServers"]["ml-trainer"]


def test_a_desktop_program_starts_it_as_it_is_printed(tmp_path: Path) -> None:
    shell = {**os.environ, "ML_TRAINER_TOKEN": "s3cret", "ML_TRAINER_STATE_DIR": "kept"}
    done = subprocess.run(COMMAND, cwd=tmp_path, env=shell, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    printed = json.loads(done.stdout)["mcpServers"]["ml-trainer"]
    assert set(printed) == {"command", "args", "env"}
    variables = [f"{name}={value}" for name, value in printed["env"].items()]
    started = ["-i", *variables, printed["command"], *printed["args"]]

    async def scenario() -> float | None:
        transport = StdioTransport("/usr/bin/env", started, cwd="/")
        async with Client(transport, init_timeout=60) as session:
            assert {tool.name for tool in await session.list_tools()} == {BEGIN, *TOOLS}
            await call(session, BEGIN, task_id="easy_mnist")
            await call(session, "configure_training")
            return (await call(session, "run_epochs", num_epochs=1)).val_accuracy

    accuracy = run(scenario, seconds=100)
    assert accuracy is not None
    assert accuracy > 0.5
    assert (tmp_path / "kept").is_dir()


def test_the_interpreter_is_the_one_of_the_virtual_environment() -> None:
    assert entry()["command"] == sys.executable
    assert Path(sys.executable).resolve() != Path(sys.executable), "the test needs a link"


def test_the_variables_that_decide_how_it_trains_are_carried_over() -> None:
    carried = entry(
        ML_TRAINER_THREADS="1",
        ML_TRAINER_SHARING="off",
        ML_TRAINER_RAW_DIR="raw",
        ML_TRAINER_PRECISION="",
        ML_TRAINER_MAX_SESSIONS="9",
        ML_TRAINER_TOKEN="s3cret",
        OPENAI_API_KEY="s3cret",
    )["env"]
    assert carried == {
        "ML_TRAINER_THREADS": "1",
        "ML_TRAINER_SHARING": "off",
        "ML_TRAINER_RAW_DIR": str(Path.cwd() / "raw"),
        "ML_TRAINER_DATA_DIR": str(datasets.cache_dir()),
        "PATH": os.defpath,
    }


def test_what_cannot_work_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="ML_TRAINER_THREADS"):
        entry(ML_TRAINER_THREADS="many")
    monkeypatch.setattr(desktop, "MODULE", "ml_trainer_env.server.nowhere")
    with pytest.raises(NotInstalled, match="make setup"):
        entry()


def test_it_says_what_the_first_training_would_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ML_TRAINER_DATA_DIR", str(tmp_path))
    assert desktop.main() == 0
    printed = capsys.readouterr()
    env = json.loads(printed.out)["mcpServers"]["ml-trainer"]["env"]
    assert env["ML_TRAINER_DATA_DIR"] == str(tmp_path)
    assert "not prepared yet: mnist, fashion_mnist, cifar10" in printed.err
    monkeypatch.setenv("ML_TRAINER_THREADS", "many")
    assert desktop.main() == 2
    assert capsys.readouterr().out == ""
