"""Sessions in this process: no server, the same rules and the same bits.

The one module of the agents that reaches into the server, and only when a session is made.
"""

# pyright: reportMissingTypeStubs=false
# OpenEnv has its types in the code.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from openenv.core.env_server.mcp_types import (
    CallToolAction,
    ListToolsAction,
    ListToolsObservation,
    Tool,
)

from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.task_ids import TaskId
from ml_trainer_env.wire import EpisodeState, ToolObservation

if TYPE_CHECKING:
    from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment


class LocalSession:
    """A session on `environment`; without one, on the engine, which all sessions here share."""

    def __init__(self, environment: MLTrainerEnvironment | None = None) -> None:
        self._environment = environment or _on_the_engine()

    def begin(self, task_id: TaskId, seed: int) -> TrainingStatus:
        return self._environment.reset(task_id=task_id, seed=seed).status

    def fork(self, key: str) -> TrainingStatus:
        return self._environment.reset(fork_of=key).status

    def call(self, tool: str, arguments: Mapping[str, Any]) -> ToolObservation:
        action = CallToolAction(tool_name=tool, arguments=dict(arguments))
        return cast(ToolObservation, self._environment.step(action))

    def tools(self) -> Sequence[Tool]:
        return cast(ListToolsObservation, self._environment.step(ListToolsAction())).tools

    def state(self) -> EpisodeState:
        return self._environment.state

    def close(self) -> None:
        self._environment.close()


def _on_the_engine() -> MLTrainerEnvironment:
    """Raises `SettingsError`."""
    from ml_trainer_env.server import trainer
    from ml_trainer_env.server.data import folder as data_folder
    from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment

    data_folder.require_usable()
    trainer.configure_process()
    return MLTrainerEnvironment()
