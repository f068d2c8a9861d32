"""Clusters that are played through their tools, small enough for a test."""

from __future__ import annotations

from typing import Any

from clusters import SETTINGS
from real import inline

from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.server import instances, runs
from ml_trainer_env.server.counterfactuals import Counterfactuals
from ml_trainer_env.server.episode import tools
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.incidents import Incident
from ml_trainer_env.server.tasks import ClusterTerms, Task
from ml_trainer_env.server.worlds import AnyFault, NetworkName, World
from ml_trainer_env.task_ids import InstanceId

STEP_SECONDS = 1.014


def task(
    *faults: AnyFault,
    network: NetworkName = "cluster_cnn",
    ranks: int = 4,
    deadline: float = 80.0,
    forks: Counterfactuals | None = None,
    calls: int | None = None,
) -> Task:
    """Of a small cluster; without `forks` one on which nothing had to be done."""
    of = World("operated", network, ranks, deadline, faults)
    forks = forks or Counterfactuals(500.0, ())
    found = Incident("fault", tuple(type(each).__name__ for each in faults), of, (), ())
    made = instances.cluster_task(InstanceId("cluster", "eval", 0), found, forks)
    return Task(
        **{
            **{name: getattr(made, name) for name in Task.__slots__},
            "cluster": ClusterTerms(of, SETTINGS, STEP_SECONDS, forks),
            "tool_calls": calls or made.tool_calls,
        }
    )


def operated(*faults: AnyFault, **options: Any) -> Episode:
    of, runner = task(*faults, **options), inline()
    return tools.begun(of, runs.begin(of.workload, 0, runner.engine()), runner)


def call(episode: Episode, tool: str, **arguments: Any) -> TrainingStatus:
    return tools.call(episode, tool, arguments)


def windows(episode: Episode, count: int) -> TrainingStatus:
    return call(episode, "run_epochs", num_epochs=count)
