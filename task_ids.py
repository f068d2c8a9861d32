"""The ids of tasks: three classic ones, and one for every instance: `varied_mlp/eval/7`.

An id says all that is needed to make its task, so whatever carries one (a status, a record, a
setting, a command line) speaks of instances, too.
"""

# pyright: strict

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, cast, get_args

from pydantic import Field

ClassicId = Literal["easy_mnist", "medium_fashion", "hard_cifar"]
Varied = Literal["varied_mlp", "varied_cnn"]  # single networks
Family = Literal["varied_mlp", "varied_cnn", "cluster"]
Split = Literal["train", "validation", "eval"]

CLASSIC_IDS: tuple[ClassicId, ...] = get_args(ClassicId)
VARIED: tuple[Varied, ...] = get_args(Varied)
CLUSTER: Family = "cluster"
FAMILIES: tuple[Family, ...] = (*VARIED, CLUSTER)
SPLITS: tuple[Split, ...] = get_args(Split)

_VARIED: dict[Split, int] = {"train": 200, "validation": 24, "eval": 48}
INSTANCES: dict[Family, dict[Split, int]] = {
    "varied_mlp": _VARIED,
    "varied_cnn": _VARIED,
    "cluster": {"train": 80, "validation": 40, "eval": 80},
}
ENDLESS_FROM = 1000  # of train: drawn without end, without a frozen scale; of single networks
MAX_INDEX = 9_999_999_999
MOST_NAMED = 10_000  # by one name

# For JSON schemas: a test compares them with the numbers above.
_OF_VARIED = {
    "train": "[0-9]|[1-9][0-9]|1[0-9][0-9]|[1-9][0-9]{3,9}",
    "validation": "[0-9]|1[0-9]|2[0-3]",
    "eval": "[0-9]|[1-3][0-9]|4[0-7]",
}
_OF_CLUSTER = {
    "train": "[0-9]|[1-7][0-9]",
    "validation": "[0-9]|[1-3][0-9]",
    "eval": "[0-9]|[1-7][0-9]",
}


def _places(families: str, index: dict[str, str]) -> str:
    return f"({families})/({'|'.join(f'{split}/({n})' for split, n in index.items())})"


PATTERN = f"^({_places('|'.join(VARIED), _OF_VARIED)}|{_places(CLUSTER, _OF_CLUSTER)})$"
EXAMPLE = "varied_mlp/eval/7"


def _ranges(family: Family) -> str:
    return ", ".join(f"{split} 0 to {count - 1}" for split, count in INSTANCES[family].items())


_RANGES = f"{_ranges(VARIED[0])}, and train from {ENDLESS_FROM} on; of cluster {_ranges(CLUSTER)}"

InstanceName = Annotated[str, Field(pattern=PATTERN, examples=[EXAMPLE], description=_RANGES)]
TaskId = ClassicId | InstanceName
Chosen = TaskId | Family  # of a family the seed chooses: an instance of train, drawn without end


@dataclass(frozen=True, slots=True)
class InstanceId:
    """Instance `index` of a split of a family."""

    family: Family
    split: Split
    index: int

    def __str__(self) -> str:
        return f"{self.family}/{self.split}/{self.index}"

    @property
    def is_endless(self) -> bool:
        return self.index >= ENDLESS_FROM


def instance_id(task_id: TaskId) -> InstanceId | None:
    """The parts of an instance's id; None for what is none."""
    if not re.fullmatch(PATTERN, task_id):
        return None
    family, split, index = task_id.split("/")
    return InstanceId(cast(Family, family), cast(Split, split), int(index))


def is_cluster(task_id: TaskId) -> bool:
    """Whether a cluster is trained there."""
    of = instance_id(task_id)
    return of is not None and of.family == CLUSTER


def of_varied(instance: InstanceId) -> Varied:
    """The family of an instance of a single network. Raises ValueError for another's."""
    if instance.family == CLUSTER:
        raise ValueError(f"{instance} is a cluster")
    return cast(Varied, instance.family)


def exists(instance: InstanceId) -> bool:
    """Whether the split has this index."""
    return instance_id(str(instance)) is not None


def instances(family: Family, split: Split) -> list[InstanceId]:
    """All that are counted: those of train without the endless ones."""
    return [InstanceId(family, split, index) for index in range(INSTANCES[family][split])]


def listed(split: Split) -> list[TaskId]:
    """The tasks of a split by their index there: the classic ones come first, in train."""
    classic: list[TaskId] = [*CLASSIC_IDS] if split == "train" else []
    return classic + [str(each) for family in FAMILIES for each in instances(family, split)]


def group_of(task_id: TaskId) -> str:
    """The tasks that are compared together: a classic one alone, a split of a family."""
    of = instance_id(task_id)
    return f"{of.family}/{of.split}" if of else task_id


GROUPS: tuple[str, ...] = (
    *CLASSIC_IDS,
    *(f"{family}/{split}" for family in FAMILIES for split in SPLITS),
)


def named(text: str) -> list[TaskId]:
    """The tasks that a name stands for: one, a split (`varied_mlp/eval`), or a part of it
    (`varied_mlp/eval/0-11`). Raises ValueError.
    """
    for family in FAMILIES:
        for split in SPLITS:
            if text == f"{family}/{split}":
                return [str(each) for each in instances(family, split)]
    if text in CLASSIC_IDS or instance_id(text):
        return [text]
    place, _, numbers = text.rpartition("/")
    if place in GROUPS and (bounds := re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", numbers)):
        first, last = int(bounds[1]), int(bounds[2])
        if 0 <= last - first < MOST_NAMED:
            found = [f"{place}/{index}" for index in range(first, last + 1)]
            if all(map(instance_id, found)):
                return [*found]
    raise ValueError(
        f"no task is named {text}; known: {', '.join(CLASSIC_IDS)}, instances such as {EXAMPLE} "
        f"({_RANGES}), splits such as varied_mlp/eval, and parts of them such as cluster/eval/0-11"
    )
