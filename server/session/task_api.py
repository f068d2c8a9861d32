"""OpenEnv's task API: which tasks there are, split by split, with their cards."""

from __future__ import annotations

from typing import Any

from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.validation import InvalidArguments
from ml_trainer_env.task_ids import SPLITS, Split, TaskId, listed


class TaskApi:
    """What OpenEnv asks of an environment that has tasks. Cards are made when asked for."""

    def list_splits(self) -> list[str]:
        return list(SPLITS)

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        return self.get_task_range(split)

    def num_tasks(self, split: str) -> int:
        return len(listed(_known(split)))

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """Raises IndexError: OpenEnv's sign for an index out of range."""
        tasks = listed(_known(split))
        if not 0 <= index < len(tasks):
            raise IndexError(f"index: must be 0 to {len(tasks) - 1}")
        return _card(tasks[index], index)

    def get_task_range(
        self, split: str, start: int | None = None, stop: int | None = None
    ) -> list[dict[str, Any]]:
        tasks = listed(_known(split))
        return [_card(tasks[index], index) for index in range(len(tasks))[start:stop]]


def _known(split: str) -> Split:
    """Raises `InvalidArguments`."""
    for known in SPLITS:
        if split == known:
            return known
    raise InvalidArguments(f"split: must be one of {', '.join(SPLITS)}")


def _card(task_id: TaskId, index: int) -> dict[str, Any]:
    return task_of(task_id).card | {"index": index}
