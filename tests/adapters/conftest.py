"""Before any library is imported: nothing here asks a hub for anything, or tells it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_trainer_env import frozen
from ml_trainer_env.frozen import Forked
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.task_ids import TaskId

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskId]:
    """One that is released whatever is frozen, and graded so that a window or two count."""
    line = Forked(
        split="validation",
        index=39,
        candidate=0,
        nothing=4.0,
        remedies=(2.2,),
        best=(),
        curve=(),
        best_curve=(),
    )
    monkeypatch.setitem(frozen.forks(), ("validation", 39), line)
    task_of.cache_clear()  # of what is frozen
    yield "cluster/validation/39"
    task_of.cache_clear()


@pytest.fixture
def log_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inspect writes its logs into the present folder."""
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path))
