"""Where open episodes stand, so that another session can go on from there.

One mechanism for two uses: a fork goes on beside the episode, and after the server was killed a
session goes on in its place. An episode is saved after every finished action, never in the middle
of one; what an interrupted action had trained lies in the snapshots and is not trained again.

With a folder, an episode stays in it when its session is closed or the server is killed, until it
is graded or its session begins another. The weights are not in it: `Runner.recall` has them, and
where it has not, they are trained again from the plans, to the same bits.
"""

# pyright: strict

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from ml_trainer_env.models import EpochRecord, TaskId, TrainingConfig
from ml_trainer_env.server.episode import Situation
from ml_trainer_env.server.schedules import RunningSchedule
from ml_trainer_env.server.tasks import TASKS, Task
from ml_trainer_env.server.validation import ActionError, InvalidArguments, shown

if TYPE_CHECKING:  # importing them for real would load torch
    from ml_trainer_env.server.runner import Runner
    from ml_trainer_env.server.trainer import TrainingState

log = logging.getLogger(__name__)

MAX_FILES = 4096  # the oldest go first; each is a few kilobytes


@dataclass(frozen=True, slots=True)
class Saved:
    """An episode as it stood after its last finished action."""

    task: Task
    seed: int
    now: Situation


class _Entry(BaseModel):
    """A file: all of `Saved` but the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: TaskId
    task_version: int
    seed: int
    key: str
    history: tuple[EpochRecord, ...]
    config: TrainingConfig | None
    schedule: RunningSchedule | None
    is_diverged: bool
    calls: int
    epochs_shared: int


class SavedEpisodes:
    """By episode id. Any thread may call. Without a folder, only those that are open."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._open: dict[str, Saved] = {}
        self._lock = threading.Lock()
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            by_age = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
            for file in by_age[:-MAX_FILES]:
                file.unlink(missing_ok=True)

    def save(self, episode_id: str, saved: Saved) -> None:
        """Replace what was saved; a graded episode is forgotten. Never raises for a full disk."""
        if saved.now.grade is not None:
            self.forget(episode_id)
            return
        with self._lock:
            self._open[episode_id] = saved
        if self._folder:
            try:
                _write(self._file(self._folder, episode_id), _entry(saved).model_dump_json())
            except OSError as error:
                log.warning("%s: %s; the episode was not saved", self._folder, error)

    def close(self, episode_id: str) -> None:
        """Its session has ended; the file stays."""
        with self._lock:
            self._open.pop(episode_id, None)

    def forget(self, episode_id: str) -> None:
        """Nobody goes on from it any more."""
        self.close(episode_id)
        if self._folder:
            self._file(self._folder, episode_id).unlink(missing_ok=True)

    def find(
        self, episode_id: str, begin: Callable[[Task, int], TrainingState], runner: Runner
    ) -> Saved:
        """Where the episode stands, trained again if need be. Raises `ActionError`."""
        with self._lock:
            saved = self._open.get(episode_id)
        if saved is not None:
            return saved
        entry = self._read(episode_id)
        if entry is None:
            raise InvalidArguments(f"fork_of: no open episode {shown(episode_id)}")
        task = TASKS[entry.task_id]
        training = runner.recall(entry.key)
        if training is None:
            training = begin(task, entry.seed)
            for record in entry.history:
                training = runner.advance(training, record.plan)
        if training.key != entry.key or task.version != entry.task_version:
            raise ActionError(
                f"fork_of: {shown(episode_id)} was trained by another version of the task or the "
                "engine, or on another kind of processor"
            )
        now = Situation(
            training=training,
            config=entry.config,
            schedule=entry.schedule,
            is_diverged=entry.is_diverged,
            calls=entry.calls,
            epochs_shared=entry.epochs_shared,
        )
        return Saved(task, entry.seed, now)

    def _read(self, episode_id: str) -> _Entry | None:
        if self._folder is None:
            return None
        file = self._file(self._folder, episode_id)
        try:
            return _Entry.model_validate_json(file.read_bytes())
        except OSError:
            return None
        except ValidationError as error:
            log.warning("%s: %s; it counts as absent", file, error)
            return None

    @staticmethod
    def _file(folder: Path, episode_id: str) -> Path:
        """Clients choose ids, so they are no file names."""
        return folder / f"{hashlib.sha256(episode_id.encode()).hexdigest()}.json"


def _entry(saved: Saved) -> _Entry:
    now = saved.now
    return _Entry(
        task_id=saved.task.task_id,
        task_version=saved.task.version,
        seed=saved.seed,
        key=now.training.key,
        history=now.training.history,
        config=now.config,
        schedule=now.schedule,
        is_diverged=now.is_diverged,
        calls=now.calls,
        epochs_shared=now.epochs_shared,
    )


def _write(file: Path, text: str) -> None:
    """Aside and then into place: whoever is killed here leaves the old file whole."""
    descriptor, aside = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
        Path(aside).replace(file)
    except OSError:
        Path(aside).unlink(missing_ok=True)
        raise
