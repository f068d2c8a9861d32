"""A crowd at a server that has just started: nobody holds the event loop up for the others."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
from fakes import FakeRunner
from live import children, eventually, free_port, serving
from scraped import scraped
from websockets.sync.client import ClientConnection, connect

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.server.app import build
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings

CROWD = 16


class Opening:
    """A factory of environments that counts how many of them are being made at a time."""

    def __init__(self) -> None:
        self.most = self.made = 0
        self.fails = False
        self._now = 0
        self._lock = threading.Lock()

    def __call__(self) -> MLTrainerEnvironment:
        with self._counted():
            time.sleep(0.01)  # others get the time to begin
            if self.fails:
                raise RuntimeError("this one cannot be opened")
            return MLTrainerEnvironment(FakeRunner())

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.made += 1
            self.most = max(self.most, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1


def opened(url: str) -> ClientConnection:
    return connect(url.replace("http", "ws") + "/ws", proxy=None)


def reset(socket: ClientConnection) -> str:
    """The type of the answer."""
    socket.send(json.dumps({"type": "reset"}))
    return json.loads(socket.recv(timeout=10))["type"]


def test_a_crowd_is_let_in_one_after_the_other_and_then_plays_side_by_side() -> None:
    opening = Opening()
    with serving(build(opening, Settings())) as url, ExitStack() as sockets:
        with ThreadPoolExecutor(CROWD) as threads:
            crowd = list(threads.map(opened, [url] * CROWD))
            for socket in crowd:
                sockets.enter_context(socket)
            assert list(threads.map(reset, crowd)) == ["observation"] * CROWD
        assert opening.made >= CROWD
        assert opening.most == 1


def test_who_is_refused_or_fails_lets_the_next_one_in() -> None:
    opening = Opening()
    with serving(build(opening, Settings(max_sessions=1))) as url, opened(url) as first:
        assert reset(first) == "observation"
        with opened(url) as second:
            assert json.loads(second.recv(timeout=10))["data"]["code"] == "CAPACITY_REACHED"
        first.close()
        opening.fails = True
        with opened(url) as third:
            assert json.loads(third.recv(timeout=10))["type"] == "error"
        opening.fails = False
        with opened(url) as fourth:
            assert reset(fourth) == "observation"


def test_what_must_be_loaded_is_loaded_before_anybody_is_listened_to() -> None:
    steps: list[str] = []
    environment = partial(MLTrainerEnvironment, FakeRunner())
    app = build(
        environment,
        Settings(),
        load=lambda: steps.append("load"),
        warm_up=lambda: steps.append("warm up"),
    )
    with serving(app) as url:
        assert steps[0] == "load"
        httpx.get(url + "/health").raise_for_status()
        eventually(lambda: steps == ["load", "warm up"])


def test_loading_leaves_no_import_for_later() -> None:
    """To a server that trains in its own process."""
    code = """
import sys
from ml_trainer_env.server.session import process
from ml_trainer_env.server import tasks
process.load()
loaded = set(sys.modules)
process.begin(process.inline_runner().engine(), tasks.TASKS["easy_mnist"], 0)
assert not {name for name in set(sys.modules) - loaded if name.startswith(("torch", "ml_"))}
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# What the server is without ---------------------------------------------------------------------


def has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_a_server_that_has_trained_holds_no_torch(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    # Python then tells of each module that this process imports, and of none that its workers do.
    command = [sys.executable, "-X", "importtime", "-m", "ml_trainer_env.server.app"]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out, subprocess.Popen([*command, *address], stderr=out) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: is_healthy(url), timeout=100)
            with MLTrainerEnv(base_url=url) as env:
                env.reset()
                env.call_tool("configure_training")
                assert env.call_tool("run_epochs", num_epochs=1).val_accuracy > 0.3
                assert env.call_tool("submit_model").grade.hidden_test_accuracy > 0.3
                watched = scraped(url)
                assert watched["ml_trainer_sessions"] == 1
                assert watched["ml_trainer_epochs_total trained"] == 1
                assert watched["ml_trainer_states"] == 1
                assert any(name.startswith("ml_trainer_engine_info") for name in watched)
                assert not has_torch(server.pid)
                assert any(map(has_torch, children(server.pid)))  # who trains does
        finally:
            server.terminate()
    imported = {line.rpartition("|")[2].strip() for line in log.read_text().splitlines()}
    assert "numpy" in imported
    assert "ml_trainer_env.server.runtime.pool" in imported
    assert "torch" not in imported


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.TransportError:
        return False
