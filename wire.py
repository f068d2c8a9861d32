"""The envelopes that carry `models` through OpenEnv: what reset, step and state answer.

Shared by the server and the client. One shape for a tool's answer at every door: the step over a
WebSocket, HTTP, `/mcp`, and in process. Importing it loads OpenEnv, but not torch or the server.
"""

# pyright: reportMissingTypeStubs=false
# OpenEnv has its types in the code.

from __future__ import annotations

from typing import Annotated, Literal

from openenv.core.env_server.mcp_types import CallToolObservation
from openenv.core.env_server.types import Observation, State
from pydantic import BaseModel, ConfigDict, Field

from ml_trainer_env.models import (
    EpochReport,
    TrainingStatus,
)
from ml_trainer_env.task_ids import TaskId


class TextBlock(BaseModel):
    """MCP's text content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text"] = "text"
    text: str = Field(description="the status as compact JSON; of a cluster in a few lines")

    @classmethod
    def of(cls, status: TrainingStatus) -> TextBlock:
        """A cluster's whole status would fill a language model's context."""
        return cls(text=str(status) if status.cluster else status.model_dump_json())


class ToolResult(BaseModel):
    """A tool's answer in the shape of MCP's CallToolResult. OpenEnv's clients look at `data`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    content: tuple[TextBlock, ...]
    structured_content: TrainingStatus
    data: TrainingStatus
    meta: None = None
    is_error: Literal[False] = False

    @classmethod
    def of(cls, status: TrainingStatus) -> ToolResult:
        text = TextBlock.of(status)
        return cls.model_construct(
            content=(text,), structured_content=status, data=status, meta=None, is_error=False
        )


class ToolObservation(CallToolObservation):
    """What a tool call answers: its result, or its error.

    `reward` is the reward of this call alone, `done` whether the episode is over. An error leaves
    the episode as it was: reward 0, `done` unchanged.
    """

    result: ToolResult | None = Field(default=None, description="null when the call failed")

    @property
    def status(self) -> TrainingStatus | None:
        """What the agent sees; None when the call failed."""
        return None if self.result is None else self.result.data


class StatusObservation(Observation):
    """What reset answers: where the new episode stands. Its `message` is the task's goal."""

    status: TrainingStatus


class EpisodeState(State):
    """OpenEnv's state of a session, for its operator: never a label, never a score.

    `step_count` counts the steps that were answered without an error, the free ones included.
    """

    key: str | None = Field(
        default=None,
        description="opens this episode to fork and resume; a secret, told to this session alone",
    )

    task_id: TaskId | None = Field(default=None, description="None before the first reset")
    task_version: int | None = None
    seed: int | None = None
    engine: str | None = Field(
        default=None, description="fingerprint: what the bits depend on beside seed and moves"
    )
    current_epoch: Annotated[int, Field(ge=0, description="epochs of the budget spent")] = 0
    max_epochs: Annotated[int, Field(ge=0)] = 0
    remaining_budget: Annotated[int, Field(ge=0, description="epochs")] = 0
    tool_calls_left: Annotated[int, Field(ge=0, description="counted calls left")] = 0
    epochs_shared: Annotated[
        int, Field(ge=0, description="spent epochs whose result another session had trained")
    ] = 0
    attempt: Annotated[
        int, Field(ge=0, description="of this session on this task and seed, counted from 1")
    ] = 0
    epochs: tuple[EpochReport, ...] = Field(
        default=(),
        description="those that the last action trained, with their seconds; at first those of a "
        "run that was taken over",
    )
    done: bool = False
