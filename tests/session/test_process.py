"""What a process shares is made once, and what cannot be made is told."""

from __future__ import annotations

import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ml_trainer_env.server import datasets
from ml_trainer_env.server.runs import Precision
from ml_trainer_env.server.runtime.channel import Channel
from ml_trainer_env.server.runtime.pool import Pool
from ml_trainer_env.server.session import process

CROWD = 8


def test_a_crowd_that_arrives_at_once_gets_one_and_the_same() -> None:
    made: list[object] = []
    others_wait = threading.Event()

    def make() -> object:
        others_wait.wait(0.2)  # long enough for the others to ask, too
        made.append(object())
        return made[-1]

    get, start = process._once(make), threading.Barrier(CROWD)

    def ask(_: int) -> object:
        start.wait()
        return get()

    with ThreadPoolExecutor(CROWD) as threads:
        got = list(threads.map(ask, range(CROWD)))
    assert len(made) == 1
    assert set(got) == set(made)


def test_workers_that_cannot_start_are_told_of_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For one, because this processor lacks what the precision needs."""

    def launch(end: socket.socket, precision: Precision) -> subprocess.Popen[bytes]:
        Channel(end).send(f'{{"error": "{precision} needs another processor"}}'.encode())
        return subprocess.Popen(["true"])

    pool = Pool(1, "bf16", launch=launch)
    monkeypatch.setattr(process, "pool", lambda: pool)
    monkeypatch.setattr(datasets, "prepare", lambda name: None)
    process.prepare(workers=True)
    pool.close()
    assert "bf16 needs another processor" in caplog.text
