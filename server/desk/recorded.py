"""Finished episodes from the records of agents, as stories of any of their moments.

Only what the listing names is opened.
"""

# pyright: strict

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ml_trainer_env.agents import records
from ml_trainer_env.agents.records import BadRecord, Called, Opened, Record, Remark
from ml_trainer_env.models import EpochRecord
from ml_trainer_env.server.desk.recorded_events import event_of
from ml_trainer_env.server.desk.story import Story
from ml_trainer_env.server.episode.played import Played
from ml_trainer_env.server.instances import task_of
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
        Story(
            task_of(record.header.task_id),
            record.header.seed,
            opening.status,
            tuple(report.record for report in opening.epochs),
            (),
        ),
    ]
    for call, remark in moves:
        before = stories[-1]
        played = Played(call.tool, call.arguments if call.status else {}, call.status, call.error)
        stories.append(
            replace(
                before,
                status=call.status or before.status,
                points=(*before.points, *_points(call, len(before.points))),
                played=(*before.played, played),
                remark=remark,
            )
        )
    return stories


def _points(call: Called, known: int) -> list[EpochRecord]:
    """What a call adds to the history, of which `known` records are known."""
    if call.epochs or call.status is None:
        return [report.record for report in call.epochs]
    event = event_of(call.tool, call.arguments, call.status, known + 1)
    return [event] if event else []


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
