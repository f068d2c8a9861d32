"""What reset takes, from whichever door."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ml_trainer_env.models import DEFAULT_TASK_ID, MAX_SEED, TASK_IDS, TaskId
from ml_trainer_env.server.tasks import TASKS, Task
from ml_trainer_env.server.validation import InvalidArguments

DEFAULT_SEED = 0
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Key = Annotated[str, Field(min_length=1, max_length=255)]  # a secret: no message repeats it


class ResetOptions(BaseModel):
    """What reset takes. A task is chosen by `task_id`, or by `split` and `index`.

    With the key of another episode it goes on from there instead: beside that one with `fork_of`,
    in its place with `resume`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    seed: Seed = DEFAULT_SEED
    episode_id: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    task_id: TaskId | None = None
    split: Literal["train"] | None = None
    index: Annotated[int, Field(ge=0, le=len(TASK_IDS) - 1)] | None = None
    fork_of: Key | None = None
    resume: Key | None = None

    def chosen_task(self) -> Task:
        if self.split is None and self.index is None:
            return TASKS[self.task_id or DEFAULT_TASK_ID]
        if self.task_id is not None:
            raise InvalidArguments("task_id: give either task_id, or split and index")
        if self.index is None:
            raise InvalidArguments(f"index: is required with split; 0 to {len(TASK_IDS) - 1}")
        return TASKS[TASK_IDS[self.index]]

    @property
    def going_on(self) -> tuple[str, str] | None:
        """The option that brings the key of the episode to go on from, and the key, if any."""
        if self.fork_of is not None:
            return "fork_of", self.fork_of
        return None if self.resume is None else ("resume", self.resume)

    @model_validator(mode="after")
    def _a_key_is_all(self) -> ResetOptions:
        if self.going_on is None:
            return self
        option, _ = self.going_on
        own = {"fork_of": {"episode_id"}, "resume": set[str]()}[option]
        given = self.model_fields_set - {option} - own
        if given:
            raise ValueError(f"{option} brings its own task and seed, so without {min(given)}")
        return self
