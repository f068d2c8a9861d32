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
    CLUSTER,
    ENDLESS_FROM,
    FAMILIES,
    INSTANCES,
    MAX_INDEX,
    SPLITS,
    Chosen,
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
    also by its family for a `task_id` and these, or by its family and the seed: one of `train`
    that is drawn without end.

    With the key of another episode it goes on from there instead: beside that one with `fork_of`,
    in its place with `resume`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    seed: Seed = DEFAULT_SEED
    episode_id: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    task_id: Chosen | None = None
    split: Split | None = None
    index: Annotated[int, Field(ge=0, le=MAX_INDEX)] | None = None
    fork_of: Key | None = None
    resume: Key | None = None

    def chosen_task(self) -> Task:
        """Raises `InvalidArguments`."""
        of = self.task_id if self.task_id in FAMILIES else None
        if self.split is None and self.index is None:
            return task_of(_endless(of, self.seed) if of else self.task_id or DEFAULT_TASK_ID)
        if self.task_id is not None and of is None:
            raise InvalidArguments(
                "task_id: give either the id of a task, or split and index, perhaps with a family "
                f"({', '.join(FAMILIES)})"
            )
        if self.index is None:
            raise InvalidArguments("index: is required with split")
        split = self.split or SPLITS[0]
        return task_of(_of_family(of, split, self.index) if of else _listed(split, self.index))

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


def _endless(family: Family, seed: int) -> TaskId:
    """Of a cluster, whose instances are counted, the seed goes round."""
    if family == CLUSTER:
        return str(InstanceId(family, "train", seed % INSTANCES[family]["train"]))
    return str(InstanceId(family, "train", ENDLESS_FROM + seed))


def _of_family(family: Family, split: Split, index: int) -> TaskId:
    """Raises `InvalidArguments`."""
    of = InstanceId(family, split, index)
    if not exists(of):
        endless = f", or from {ENDLESS_FROM} on" if split == "train" and family != CLUSTER else ""
        most = INSTANCES[family][split] - 1
        raise InvalidArguments(f"index: must be 0 to {most} in {split}{endless}")
    return str(of)


def _listed(split: Split, index: int) -> TaskId:
    """Raises `InvalidArguments`."""
    tasks = listed(split)
    if index >= len(tasks):
        raise InvalidArguments(f"index: must be 0 to {len(tasks) - 1} in {split}")
    return tasks[index]
