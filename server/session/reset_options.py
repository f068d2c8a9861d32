"""What reset takes, from whichever door."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ml_trainer_env.models import (
    DEFAULT_TASK_ID,
    MAX_SEED,
)
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.server.validation import InvalidArguments
from ml_trainer_env.task_ids import (
    ENDLESS_FROM,
    FAMILIES,
    INSTANCES,
    MAX_INDEX,
    SPLITS,
    Family,
    InstanceId,
    Split,
    TaskId,
    exists,
    listed,
)

DEFAULT_SEED = 0
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Key = Annotated[str, Field(min_length=1, max_length=255)]  # a secret: no message repeats it


class ResetOptions(BaseModel):
    """What reset takes. A task is chosen by `task_id`, or by `split` and `index`; an instance
    also by its family for a `task_id` and these.

    With the key of another episode it goes on from there instead: beside that one with `fork_of`,
    in its place with `resume`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    seed: Seed = DEFAULT_SEED
    episode_id: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    task_id: TaskId | Family | None = None
    split: Split | None = None
    index: Annotated[int, Field(ge=0, le=MAX_INDEX)] | None = None
    fork_of: Key | None = None
    resume: Key | None = None

    def chosen_task(self) -> Task:
        """Raises `InvalidArguments`."""
        family = self.task_id if self.task_id in FAMILIES else None
        by_place = self.split is not None or self.index is not None
        if family is None and not by_place:
            return task_of(self.task_id or DEFAULT_TASK_ID)
        if family is None and self.task_id is not None:
            raise InvalidArguments(
                "task_id: give either the id of a task, or split and index, perhaps with a family "
                f"({', '.join(FAMILIES)})"
            )
        split = self.split or SPLITS[0]
        if self.index is None:
            raise InvalidArguments(f"index: is required with {'split' if by_place else family}")
        if family is not None:
            of = InstanceId(family, split, self.index)
            if not exists(of):
                raise InvalidArguments(f"index: {_range(split, INSTANCES[split])}")
            return task_of(str(of))
        tasks = listed(split)
        if self.index >= len(tasks):
            raise InvalidArguments(f"index: must be 0 to {len(tasks) - 1} in {split}")
        return task_of(tasks[self.index])

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


def _range(split: Split, count: int) -> str:
    endless = f", or from {ENDLESS_FROM} on" if split == "train" else ""
    return f"must be 0 to {count - 1} in {split}{endless}"
