"""What can be played: the classic tasks, and instances of the families."""

# gradio leaves most types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import secrets
from typing import Any

import gradio as gr

from ml_trainer_env import frozen
from ml_trainer_env.server.instances import TITLES
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.task_ids import CLUSTER, FAMILIES, INSTANCES, Family, Split

TASK_CHOICES = [(f"{task.title} · {key}", key) for key, task in TASKS.items()]
TASK_CHOICES += [(f"{TITLES[family]} · many instances", family) for family in FAMILIES]


def if_family(task_id: str) -> Any:
    """Of a family an instance is chosen."""
    return gr.update(visible=task_id in FAMILIES)


def surprise(family: Family, split: Split) -> int:
    """Any instance of the split, of the cluster any that is released."""
    if family != CLUSTER:
        return secrets.randbelow(INSTANCES[family][split])
    released = [index for of, index in frozen.forks() if of == split]
    return secrets.choice(released) if released else 0
