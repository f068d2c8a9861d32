"""What reset takes, from whichever door."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ml_trainer_env.models import DEFAULT_TASK_ID, MAX_SEED, TASK_IDS, TaskId
from ml_trainer_env.server.tasks import TASKS, Task
from ml_trainer_env.server.validation import InvalidArguments

DEFAULT_SEED = 0
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class ResetOptions(BaseModel):
    """What reset takes. A task is chosen by `task_id`, or by `split` and `index`.

    With `fork_of`, an episode id, the episode goes on from where that one stands instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    seed: Seed = DEFAULT_SEED
    episode_id: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    task_id: TaskId | None = None
    split: Literal["train"] | None = None
    index: Annotated[int, Field(ge=0, le=len(TASK_IDS) - 1)] | None = None
    fork_of: Annotated[str, Field(min_length=1, max_length=255)] | None = None

    def chosen_task(self) -> Task:
        if self.split is None and self.index is None:
            return TASKS[self.task_id or DEFAULT_TASK_ID]
        if self.task_id is not None:
            raise InvalidArguments("task_id: give either task_id, or split and index")
        if self.index is None:
            raise InvalidArguments(f"index: is required with split; 0 to {len(TASK_IDS) - 1}")
        return TASKS[TASK_IDS[self.index]]

    @model_validator(mode="after")
    def _fork_is_all(self) -> ResetOptions:
        given = self.model_fields_set - {"fork_of", "episode_id"}
        if self.fork_of is not None and given:
            raise ValueError(f"fork_of brings its own task and seed, so without {min(given)}")
        return self
