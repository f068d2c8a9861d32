"""Moves that many tests make: on an episode, and on an environment in process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes import FakeRunner, begin
from openenv.core.env_server.mcp_types import CallToolAction

from ml_trainer_env.agents import catalogue
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.records import RecordWriter
from ml_trainer_env.models import (
    EpochPlan,
    EpochRecord,
    TrainingStatus,
)
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.episode.tools import begun
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.task_ids import TaskId
from ml_trainer_env.wire import ToolObservation


def of(task_id: str, runner: FakeRunner) -> Episode:
    return begun(TASKS[task_id], begin(TASKS[task_id], 0), runner)


def configured(episode: Episode, **changes: Any) -> Episode:
    episode.configure_training(changes)
    return episode


def plans(episode: Episode) -> list[EpochPlan]:
    return [epoch_plan(record) for record in episode.now.training.history]


def epoch_plan(record: EpochRecord) -> EpochPlan:
    assert isinstance(record.plan, EpochPlan)
    return record.plan


def diverge(episode: Episode) -> TrainingStatus:
    """Send a configured episode into a divergence; its learning rate is then 10."""
    episode.adjust_learning_rate(10)
    return episode.run_epochs(1)


def call(env: MLTrainerEnvironment, tool: str, /, **arguments: Any) -> ToolObservation:
    return tried(env, tool, arguments)


def tried(env: MLTrainerEnvironment, tool: str, arguments: dict[str, Any]) -> ToolObservation:
    observation = env.step(CallToolAction(tool_name=tool, arguments=arguments))
    assert isinstance(observation, ToolObservation)
    return observation


def answered(env: MLTrainerEnvironment, tool: str, /, **arguments: Any) -> TrainingStatus:
    """What the agent sees of a call that is taken."""
    observation = tried(env, tool, arguments)
    assert observation.status, observation.error
    return observation.status


def refused(env: MLTrainerEnvironment, tool: str, /, **arguments: Any) -> str:
    """The reason."""
    observation = tried(env, tool, arguments)
    assert observation.error
    return observation.error.message


def key_of(env: MLTrainerEnvironment) -> str:
    """As the session's state tells it, and nothing else."""
    key = env.state.key
    assert key is not None
    return key


def trained(env: MLTrainerEnvironment, epochs: int = 5, **reset: Any) -> TrainingStatus:
    """What the first run of a fresh episode with the default configuration answers."""
    env.reset(**reset)
    assert call(env, "configure_training").error is None
    status = call(env, "run_epochs", num_epochs=epochs).status
    assert status is not None
    return status


def record(
    path: Path, agent: str, runner: FakeRunner, task_id: TaskId = "hard_cifar"
) -> list[Episode | None]:
    """An attempt of `agent`, recorded at `path`; gives the episodes that were open at its end."""
    opened: list[MLTrainerEnvironment] = []

    def connect() -> LocalSession:
        opened.append(MLTrainerEnvironment(runner))
        return LocalSession(opened[-1])

    with RecordWriter(path) as writer, Attempt(agent, connect, task_id, 5, [writer]) as attempt:
        catalogue.find(agent)(attempt)
        return [env.episode for env in opened]
