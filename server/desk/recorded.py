"""Finished episodes from the records of agents, as stories of any of their moments.

A record tells what its agent saw: losses of at most ten epochs for each call, other numbers of its
last epoch. What each epoch used follows from the calls, by the rules of `server/schedules.py`.
Only what the listing names is opened.
"""

# pyright: strict

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ml_trainer_env.agents import records
from ml_trainer_env.agents.records import BadRecord, Called, Opened, Record, Remark
from ml_trainer_env.models import EpochPlan, TrainingConfig, TrainingStatus
from ml_trainer_env.server.desk.story import Point, Story
from ml_trainer_env.server.played import Played
from ml_trainer_env.server.schedules import RunningSchedule, after_change
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.validation import ActionError

MOST_LISTED = 500


class NoRecord(ActionError):
    """There is no record of this name, or it cannot be read."""


def names(folder: Path) -> list[str]:
    """The whole records below `folder`, the newest first."""
    found = [(path.stat().st_mtime, path) for path in records.find(folder)]
    newest = sorted(found, reverse=True)[:MOST_LISTED]
    return [path.relative_to(folder).with_suffix("").as_posix() for _, path in newest]


@dataclass(frozen=True, slots=True)
class Recorded:
    """An attempt: the line of training that was submitted, moment by moment."""

    record: Record
    moments: tuple[Story, ...]  # at the start, then after each call

    @property
    def title(self) -> str:
        header = self.record.header
        return f"{header.agent} on {header.task_id}, seed {header.seed}"


def open_record(folder: Path, name: str) -> Recorded:
    """Raises `NoRecord`."""
    if name not in names(folder):  # so that no name leads out of the folder
        raise NoRecord("record: must be one of the list; reload the page for the newest")
    path = folder / f"{name}.jsonl"
    return _read(path, path.stat().st_mtime)


@lru_cache(maxsize=16)
def _read(path: Path, modified: float) -> Recorded:
    try:
        record = records.read(path)
    except BadRecord as error:
        raise NoRecord("record: this file is not a whole record of this version") from error
    return Recorded(record, tuple(_moments(record)))


def _moments(record: Record) -> list[Story]:
    """The stories of the submitted session, its forks' parents included up to the fork."""
    opening, moves = _line(record, record.end.session, len(record.lines))
    stories = [
        Story(TASKS[record.header.task_id], record.header.seed, opening.status, (), ()),
    ]
    training = _Training(opening.status.max_epochs)
    for call, remark in moves:
        before = stories[-1]
        played = Played(call.tool, call.arguments if call.status else {}, call.status, call.error)
        stories.append(
            replace(
                before,
                status=call.status or before.status,
                points=training.after(before.points, call.status),
                played=(*before.played, played),
                remark=remark,
            )
        )
    return stories


def _line(record: Record, session: int, end: int) -> tuple[Opened, list[tuple[Called, str]]]:
    """How `session` was opened, and its calls among the first `end` lines, each with what the
    agent said before it; for a fork those of its parent come first.
    """
    start, opened = next(
        (index, line)
        for index, line in enumerate(record.lines)
        if isinstance(line, Opened) and line.session == session
    )
    moves: list[tuple[Called, str]] = []
    first = opened
    if opened.fork_of is not None:
        first, moves = _line(record, opened.fork_of, start)
    said = ""
    for line in record.lines[start:end]:
        if isinstance(line, Remark):
            said = line.text
        elif isinstance(line, Called) and line.session == session:
            moves.append((line, said))
            said = ""
    return first, moves


class _Training:
    """Follows the calls and knows what each epoch used."""

    def __init__(self, max_epochs: int) -> None:
        self._max_epochs = max_epochs
        self._config: TrainingConfig | None = None
        self._schedule: RunningSchedule | None = None

    def after(self, points: tuple[Point, ...], status: TrainingStatus | None) -> tuple[Point, ...]:
        """The points once a call has answered `status`."""
        if status is None or status.current_config is None:
            return points
        ran = range(len(points) + 1, status.current_epoch + 1)
        grown = (*points, *(self._point(epoch, status) for epoch in ran))
        if not ran:
            self._follow(status, status.current_epoch)
        return grown

    def _follow(self, status: TrainingStatus, epoch: int) -> None:
        """The configuration in force after a call that did not train."""
        current = status.current_config
        assert current is not None
        config = TrainingConfig(**current.model_dump(include=set(TrainingConfig.model_fields)))
        schedule = after_change(
            self._config, config, self._schedule, epoch, self._max_epochs - epoch
        )
        if schedule.rate(epoch) != current.learning_rate_in_force:  # it was adjusted
            assert self._schedule is not None
            schedule = self._schedule.rescaled(current.learning_rate_in_force, epoch)
        self._config, self._schedule = config, schedule

    def _point(self, epoch: int, status: TrainingStatus) -> Point:
        config, schedule = self._config, self._schedule
        assert config is not None, "an epoch needs a configuration"
        assert schedule is not None
        last = epoch == status.current_epoch
        return Point(
            epoch=epoch,
            plan=EpochPlan(
                optimizer=config.optimizer,
                learning_rate=schedule.rate(epoch - 1),  # schedules count from 0
                batch_size=config.batch_size,
                weight_decay=config.weight_decay,
                dropout=config.dropout,
                augmentation=config.augmentation_strength if config.augmentation else 0.0,
            ),
            train_loss=_of(epoch, status.loss_history_last_10, status),
            val_loss=_of(epoch, status.val_loss_history_last_10, status),
            train_accuracy=status.train_accuracy if last else None,
            val_accuracy=_accuracy(epoch, status),
            diverged=last and status.is_diverged,
        )


def _of(epoch: int, losses: Sequence[float | None], status: TrainingStatus) -> float | None:
    """The loss of `epoch`, when it is among the last ones that are told."""
    index = epoch - (status.current_epoch - len(losses)) - 1
    return losses[index] if index >= 0 else None


def _accuracy(epoch: int, status: TrainingStatus) -> float | None:
    """Known of the last epoch of a call, and of the best one."""
    if epoch == status.current_epoch:
        return status.val_accuracy
    return status.best_val_accuracy if epoch == status.best_val_epoch else None
