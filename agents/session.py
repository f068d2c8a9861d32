"""One session as an agent's code sees it: over a WebSocket, or in this process.

The same calls and the same answers either way, and an invalid call is an answer too: its error is
data, and nothing has changed.
"""

# pyright: reportMissingTypeStubs=false
# OpenEnv has its types in the code.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from openenv.core.env_server.mcp_types import CallToolAction, Tool, ToolError, ToolErrorType
from websockets.exceptions import WebSocketException

from ml_trainer_env.client import MLTrainerEnv, SyncClient
from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.task_ids import TaskId
from ml_trainer_env.wire import EpisodeState, StatusObservation, ToolObservation

# What a session can raise for a server that is gone, refuses, or falls silent.
CONNECTION_ERRORS = (OSError, RuntimeError, WebSocketException)

# How OpenEnv's client tells of a message that the server refused to read. It has no class for it.
_REFUSALS = ("(code: VALIDATION_ERROR)", "(code: INVALID_JSON)")


class Session(Protocol):
    """An episode in progress, or none yet. Belongs to one thread."""

    def begin(self, task_id: TaskId, seed: int) -> TrainingStatus: ...

    def fork(self, key: str) -> TrainingStatus:
        """Go on from where the open episode with this key stands after its last action."""
        ...

    def call(self, tool: str, arguments: Mapping[str, Any]) -> ToolObservation: ...

    def tools(self) -> Sequence[Tool]: ...

    def state(self) -> EpisodeState: ...

    def close(self) -> None: ...


Connect = Callable[[], Session]


class RemoteSession:
    """A session on the server at `url`, which may ask for a `token`."""

    def __init__(self, url: str, token: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self._client: SyncClient = MLTrainerEnv(base_url=url, headers=headers).__enter__()

    def begin(self, task_id: TaskId, seed: int) -> TrainingStatus:
        return self._reset(task_id=task_id, seed=seed)

    def fork(self, key: str) -> TrainingStatus:
        return self._reset(fork_of=key)

    def call(self, tool: str, arguments: Mapping[str, Any]) -> ToolObservation:
        action = CallToolAction(tool_name=tool, arguments=dict(arguments))
        try:
            return cast(ToolObservation, self._client.step(action).observation)
        except RuntimeError as error:
            if not str(error).endswith(_REFUSALS):
                raise
            refusal = ToolError(error_type=ToolErrorType.INVALID_ARGS, message=str(error))
            return ToolObservation(tool_name=tool, error=refusal, reward=0.0)

    def tools(self) -> Sequence[Tool]:
        return self._client.list_tools()

    def state(self) -> EpisodeState:
        return self._client.state()

    def close(self) -> None:
        self._client.close()

    def _reset(self, **options: Any) -> TrainingStatus:
        return cast(StatusObservation, self._client.reset(**options).observation).status
