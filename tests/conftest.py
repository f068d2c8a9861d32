"""Shared fixtures: a fake runner, sessions and a live server on it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from fakes import FakeRunner, begin
from live import serving

from ml_trainer_env.server.app import build
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.episode.tools import begun
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings
from ml_trainer_env.server.tasks import TASKS


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Commands that tests call set handlers; the next test finds those that were there before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def runner() -> Iterator[FakeRunner]:
    runner = FakeRunner()
    yield runner
    runner.gate.set()  # let go of whatever a failed test left behind


@pytest.fixture
def episode(runner: FakeRunner) -> Episode:
    task = TASKS["easy_mnist"]
    return begun(task, begin(task, 0), runner)


@pytest.fixture
def env(runner: FakeRunner) -> Iterator[MLTrainerEnvironment]:
    env = MLTrainerEnvironment(runner)
    yield env
    env.close()


@pytest.fixture
def serve(runner: FakeRunner) -> Iterator[Callable[..., str]]:
    """Start servers on `runner`: `serve(max_sessions=1)` gives a base URL."""
    with ExitStack() as servers:

        def start(**settings: Any) -> str:
            environment = partial(MLTrainerEnvironment, runner)
            return servers.enter_context(serving(build(environment, Settings(**settings))))

        yield start
        runner.gate.set()


@pytest.fixture
def url(serve: Callable[..., str]) -> str:
    return serve()
