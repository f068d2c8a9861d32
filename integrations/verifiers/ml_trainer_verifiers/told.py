"""Where the training stands, in few words: all turns of a rollout share its context."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]

SHOWN = (
    "current_epoch", "max_epochs", "tool_calls_left", "convergence_signal", "val_accuracy",
    "val_loss", "generalization_gap", "train_loss", "best_val_accuracy", "best_val_epoch",
)  # fmt: skip

OF_CLUSTER = (
    "step", "steps_made", "seconds", "deadline", "goodput", "learning_rate_in_force", "excluded",
    "quarantined", "checkpoints", "incidents", "finding",
)  # fmt: skip
OF_WINDOW = (
    "number", "step", "loss", "highest_loss", "val_loss", "gradient_norm", "highest_gradient_norm",
    "skipped",
)  # fmt: skip
OF_RANK = ("rank", "step_seconds", "gradient_norm", "agreement", "loss", "alive")
WINDOWS = 4  # the last ones


def standing(status: Json) -> str:
    """Of one network or a cluster."""
    cluster = status.get("cluster")
    if cluster is None:
        return json.dumps(_of(status, SHOWN))
    told = _of(status, ("tool_calls_left",)) | _of(cluster, OF_CLUSTER)
    if status["epochs_run"]:  # else they were told before
        last = cluster["windows"][-1]
        told["windows"] = _table(OF_WINDOW, cluster["windows"][-WINDOWS:])
        told["ranks"] = _table(OF_RANK, last["ranks"])
        told["shard_losses"] = last["shard_losses"]
    return json.dumps(told)


def _table(names: tuple[str, ...], rows: list[Json]) -> list[list[Any]]:
    """Their names once, then their values."""
    return [list(names), *([row[name] for name in names] for row in rows)]


def _of(values: Json, names: tuple[str, ...]) -> Json:
    return {name: values[name] for name in names}
