"""On every task a good agent earns more than a naive one, that more than chance, that more than
doing nothing: by the score, and by the return that an RL trainer sees. All for real.
"""

from __future__ import annotations

import pytest
from real import engine

from ml_trainer_env.agents import catalogue
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.records import Ended
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.task_ids import TaskId


def played(name: str, task_id: TaskId, seed: int = 0) -> Ended:
    def connect() -> LocalSession:
        return LocalSession(MLTrainerEnvironment(engine()))

    with Attempt(name, connect, task_id, seed) as attempt:
        catalogue.find(name)(attempt)
    assert attempt.ended is not None
    return attempt.ended


def compare(task_id: TaskId, chances: int) -> None:
    """Reference and expert > naive > random > nothing, by score and by return."""
    reference, expert, naive, nothing = (
        played(name, task_id) for name in ("reference", "expert", "naive", "nothing")
    )
    wild = [played("random", task_id, seed) for seed in range(chances)]
    wild_score = sum(ended.grade.score for ended in wild) / len(wild)
    wild_return = sum(ended.episode_return for ended in wild) / len(wild)
    for good in (reference, expert):
        assert 1 >= good.grade.score > naive.grade.score > wild_score > nothing.grade.score == 0
        assert good.episode_return > naive.episode_return > wild_return
    assert naive.episode_return > nothing.episode_return == 0


def test_good_naive_random_nothing() -> None:
    compare("easy_mnist", chances=6)


@pytest.mark.slow
@pytest.mark.very_slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task_id", ["medium_fashion", "hard_cifar"])
def test_good_naive_random_nothing_on_the_larger_tasks(task_id: TaskId) -> None:
    compare(task_id, chances=20)  # the first six happen to do well on medium
