"""A cluster that cannot be reached: it is said why, and tried again."""

from __future__ import annotations

import socket

import pytest
from live import eventually

pytest.importorskip("ray", reason="the extra `ray`")

from ml_trainer_env.benchmarks.sessions import ray_nodes as rays
from ml_trainer_env.server.runtime.asking import QueueFull
from ml_trainer_env.server.runtime.ray import farm as farms
from ml_trainer_env.server.runtime.ray import machines
from ml_trainer_env.server.runtime.ray.machines import Machines
from ml_trainer_env.server.runtime.ray.nodes import Wanted


def test_a_bridge_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[object] = []

    def none_left(*_: object, **__: object) -> None:
        tried.append(_)
        raise BlockingIOError("no process is left")

    monkeypatch.setattr(machines, "AGAIN", 0.01)
    monkeypatch.setattr(machines.subprocess, "Popen", none_left)
    made = Machines(Wanted("fp32"), changed=lambda *_: None, lost=lambda: None)
    eventually(lambda: len(tried) > 2, 10)
    made.close()
    assert made.says == "what speaks to it cannot be started (no process is left)"
    assert caplog.text.count(made.says) == 1


def test_a_head_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Within seconds, to whoever reads the log; who asks for training may ask again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with rays.farm(address) as farm:
        eventually(lambda: f"no head answers at {address}" in farm.machines.says, 60)
        monkeypatch.setattr(farms, "PATIENCE", 0.01)
        with pytest.raises(QueueFull, match="no machine of its cluster trains yet"):
            farm.engine()
    assert f"no core came in 0.01 s: no head answers at {address}" in caplog.text
