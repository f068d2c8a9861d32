"""The command line: every command says what it does, and what is wrong with its arguments."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from command import run
from live import children, eventually, free_port, is_running, listens

from ml_trainer_env.agents.catalogue import AGENTS
from ml_trainer_env.task_ids import CLASSIC_IDS

COMMANDS = [
    "demo",
    "cluster",
    "serve",
    "resources",
    "mcp",
    "data fetch",
    "data status",
    "evaluate",
    "report",
    "replay",
]


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    status, out = run(*command.split(), "--help")
    assert status == 0
    assert "Usage:" in out
    assert command == "data status" or "Example: ml-trainer" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluate", "--tasks", "easy_mnist,imagenet"], "no task is named imagenet; known: easy"),
        (["evaluate", "--agents", "genius"], "no agent is named genius; known: nothing"),
        (["evaluate", "--seeds", "0"], "--seeds"),
        (["demo", "--tasks", "impossible"], "no task is named impossible"),
        (["cluster", "--fault", "crash,fire"], "no fault is named fire; known: crash, dead"),
        (["cluster", "--ranks", "1"], "--ranks"),
        (["cluster", "--network", "easy_mnist"], "cluster_lm"),
        (["resources", "--cores", "0"], "--cores"),
        (["fly"], "No such command"),
    ],
)
def test_a_wrong_argument_is_explained(arguments: list[str], told: str) -> None:
    status, out = run(*arguments)
    assert status == 2
    assert told in out


def test_tasks_agents_are_offered_for_completion() -> None:
    environment = {
        "_ML_TRAINER_COMPLETE": "complete_bash",
        "COMP_WORDS": "ml-trainer evaluate --agents naive,ex",
        "COMP_CWORD": "3",
    }
    script = "import sys; sys.argv[0] = 'ml-trainer'; from ml_trainer_env.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["naive,expert"], done.stderr


def test_the_ladder_is_played_recorded_reported_and_replayed(url: str) -> None:
    arguments = ["--url", url, "--tasks", "easy_mnist,hard_cifar", "--seeds", "2", "--out", "e"]
    status, out = run("evaluate", *arguments)
    assert status == 0
    assert len(list(Path("e").glob("*.jsonl"))) == 2 * 2 * 4
    assert "hard_cifar: nothing 0.000 < random" in out
    assert "| expert | 2 |" in out
    assert {path.name for path in Path("e").glob("*.png")} == {
        "scores.png",
        "curves.png",
        "profile.png",
    }
    status, again = run("report", "--folder", "e")
    assert status == 0
    assert "| expert | 2 |" in again
    status, out = run("replay", "--url", url, *map(str, Path("e").glob("*-1.jsonl")))
    assert status == 0
    assert out.count("the same, bit for bit") == 2 * 4


def test_a_record_that_was_tampered_with_is_found_out(url: str) -> None:
    run("evaluate", "--url", url, "--agents", "naive", "--seeds", "1", "--out", "e")
    path = Path("e/easy_mnist-naive-0.jsonl")
    path.write_text(path.read_text().replace('"val_accuracy":0.9', '"val_accuracy":0.8'))
    status, out = run("replay", "--url", url, str(path))
    assert status == 1
    assert "val_accuracy was 0.8" in out


def test_a_record_of_an_older_task_is_not_replayed_and_said_so(url: str) -> None:
    run("evaluate", "--url", url, "--agents", "nothing,naive", "--seeds", "1", "--out", "e")
    older, whole = Path("e/easy_mnist-nothing-0.jsonl"), Path("e/easy_mnist-naive-0.jsonl")
    older.write_text(older.read_text().replace('"task_version":2', '"task_version":1', 1))
    status, out = run("replay", "--url", url, str(older), str(whole))
    assert status == 1
    assert "was played on version 1 of easy_mnist, and this is version 2" in " ".join(out.split())
    assert out.count("the same, bit for bit") == 1


def test_a_report_of_nothing() -> None:
    Path("e").mkdir()
    status, out = run("report", "--folder", "e")
    assert status == 1
    assert "no whole record" in out


def test_an_environment_that_is_not_there() -> None:
    status, out = run("evaluate", "--url", "http://127.0.0.1:9", "--agents", "naive")
    assert status == 1
    assert "Failed to connect" in out


def test_a_server_that_needs_a_token_is_played_with_it(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(token="s3cret")
    arguments = ["evaluate", "--url", url, "--agents", "nothing", "--tasks", "easy_mnist"]
    arguments += ["--seeds", "1", "--out", "e"]
    status, out = run(*arguments)
    assert status == 1
    assert "401" in out
    monkeypatch.setenv("ML_TRAINER_TOKEN", "s3cret")
    assert run(*arguments)[0] == 0
    assert run("replay", "--url", url, "e/easy_mnist-nothing-0.jsonl")[0] == 0


def test_serve_listens_where_it_is_told_to_and_killed_leaves_nothing() -> None:
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    arguments = ["serve", "--host", "127.0.0.1", "--port", port]
    variables = os.environ | {"WEB_CONCURRENCY": "2"}  # it is one process nevertheless
    command = [sys.executable, "-m", "ml_trainer_env.cli", *arguments]
    with subprocess.Popen(command, env=variables) as server:
        try:
            eventually(lambda: listens(url), timeout=60)
            httpx.get(url + "/health", timeout=100).raise_for_status()
            with socket.socket() as elsewhere:  # still this machine, but another address of it
                assert elsewhere.connect_ex(("127.0.0.2", int(port))) != 0
            eventually(lambda: children(server.pid), timeout=60)
            workers = children(server.pid)
        finally:
            server.kill()
    eventually(lambda: not listens(url) and not any(map(is_running, workers)))


@pytest.mark.parametrize("command", ["--help", "evaluate --help"])
def test_help_is_quick_because_it_loads_little(command: str) -> None:
    script = f"""
import sys
from ml_trainer_env.cli import app
try:
    app({command.split()!r})
except SystemExit:
    heavy = {{"torch", "openenv", "openai", "optuna", "matplotlib"}}
    print(*heavy & {{*sys.modules}}, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == ""
    assert all(name in done.stdout for name in (*AGENTS, *CLASSIC_IDS)) or command == "--help"
