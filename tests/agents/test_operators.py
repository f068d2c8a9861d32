"""Operators of clusters: to the deadline or the last call, and what they take for unusual."""

from __future__ import annotations

import math

import operated
import pytest
from real import inline

from ml_trainer_env.agents import catalogue
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.catalogue import OF_CLUSTERS
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.records import Called, Line
from ml_trainer_env.agents.watching import FEWEST, Watch
from ml_trainer_env.cluster_status import ClusterStatus
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session import reset_options
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.server.worlds import Crash

TASK_ID = "cluster/eval/0"
PLAYERS = [name for name in OF_CLUSTERS if name not in ("llm", "oracle")]  # which knows others


def played(name: str, task: Task, monkeypatch: pytest.MonkeyPatch) -> tuple[Attempt, list[Called]]:
    """On this task in place of any other."""
    monkeypatch.setattr(reset_options, "task_of", lambda _: task)
    lines: list[Line] = []

    def connect() -> LocalSession:
        return LocalSession(MLTrainerEnvironment(inline()))

    with Attempt(name, connect, TASK_ID, 0, [lines.append]) as attempt:
        catalogue.find(name)(attempt)
    return attempt, [line for line in lines if isinstance(line, Called)]


@pytest.mark.parametrize("name", PLAYERS)
def test_every_operator_plays_to_the_deadline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, calls = played(name, operated.task(deadline=60.0), monkeypatch)
    assert attempt.ended is not None
    assert calls[-1].status is not None
    assert calls[-1].status.grade is not None


@pytest.mark.parametrize("name", PLAYERS)
def test_the_last_call_submits_and_nobody_goes_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that crashes again and again ends call after call."""
    crashes = tuple(Crash(at=10.0 + 3 * number, host=0) for number in range(20))
    few = operated.task(*crashes, deadline=400.0, calls=4)
    attempt, calls = played(name, few, monkeypatch)
    assert attempt.ended is not None
    assert len([call for call in calls if call.tool != "get_training_status"]) <= 4


def seen(losses: list[float]) -> ClusterStatus:
    """A window of such steps, in which all else is as usual."""
    return ClusterStatus.model_construct(losses=losses, gradient_norms=[1.0] * len(losses))


USUAL = [2.0 + 0.01 * math.sin(step) for step in range(FEWEST)]


def test_a_watch_counts_the_steps_that_are_far_above_the_usual() -> None:
    for steps, high, jumped in [(1, 1, True), (3, 2, False), (3, 3, True)]:
        watch = Watch(steps)
        assert not watch.jumped(seen(USUAL))
        assert watch.jumped(seen([5.0] * high + [2.0] * (25 - high))) is jumped


def test_a_short_window_has_few_steps_and_an_empty_one_none() -> None:
    watch = Watch(3)
    watch.jumped(seen(USUAL))
    assert watch.jumped(seen([5.0]))
    assert not watch.jumped(seen([]))


def test_what_is_far_above_is_not_learned_from() -> None:
    watch = Watch()
    watch.jumped(seen(USUAL))
    assert watch.jumped(seen([5.0] * 25))
    assert watch.jumped(seen([5.0] * 25))
