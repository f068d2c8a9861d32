"""How a call is answered in OpenEnv's envelopes: by its status, or by what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable

from openenv.core.env_server.mcp_types import (
    ListToolsObservation,
    Tool,
    ToolError,
    ToolErrorType,
)

from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.server.episode.tools import ToolSpec, UnknownTool
from ml_trainer_env.server.validation import ActionError, InvalidArguments
from ml_trainer_env.wire import ToolObservation, ToolResult


def answered(tool: str, status: TrainingStatus) -> ToolObservation:
    """With the reward of this call alone."""
    return ToolObservation(
        tool_name=tool,
        result=ToolResult.of(status),
        reward=status.reward,
        done=status.done,
    )


def refused(tool: str, error: ActionError, *, done: bool) -> ToolObservation:
    """Nothing has changed, and nothing is paid."""
    return ToolObservation(
        tool_name=tool,
        error=ToolError(error_type=_type_of(error), message=str(error)),
        reward=0.0,
        done=done,
    )


def listed(tools: Iterable[ToolSpec], *, done: bool) -> ListToolsObservation:
    """What may be called."""
    found = [
        Tool(name=spec.name, description=spec.description, input_schema=spec.input_schema)
        for spec in tools
    ]
    return ListToolsObservation(tools=found, reward=0.0, done=done)


def _type_of(error: ActionError) -> ToolErrorType:
    if isinstance(error, UnknownTool):
        return ToolErrorType.TOOL_NOT_FOUND
    if isinstance(error, InvalidArguments):
        return ToolErrorType.INVALID_ARGS
    return ToolErrorType.EXECUTION_ERROR
