"""The record of an attempt: one JSON Lines file, readable without this package.

The first line says who plays what (`attempt`); then come every session that was opened (`session`),
every call with its answer, reward and reward terms (`call`), what a model said (`remark`), and at
the end the score (`end`). Numbers are written so that they are read back to the bit.

A file appears under its name when the attempt has ended; until then it ends in `.part`, and belongs
to the one process that writes it. So a file without that ending is whole, whenever its writer was
killed; what is left of a `.part` gives way to the next attempt of that name.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self, TextIO

from pydantic import Field, JsonValue, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from ml_trainer_env.agents.players import Player
from ml_trainer_env.models import (
    EpochReport,
    Grade,
    Model,
    TrainingStatus,
)
from ml_trainer_env.task_ids import TaskId

FORMAT = 2  # of the file; readers refuse others
UNFINISHED = ".part"
MOST_EPOCHS = 100_000  # that are believed of a file: curves have a point for each


class BadRecord(ValueError):
    """Not a whole record in this format; the message names the file and what is wrong."""


class RecordInUse(RuntimeError):
    """Somebody else is writing this record at the moment."""


class Header(Model):
    """Who plays what. With the calls, all that the bits depend on."""

    kind: Literal["attempt"] = "attempt"
    format: Literal[2] = FORMAT
    agent: str
    model: str | None = Field(default=None, description="the language model, where there is one")
    options: dict[str, JsonValue] = Field(
        default_factory=dict, description="what else decides how the agent plays"
    )
    task_id: TaskId
    task_version: int
    seed: int
    engine: str | None = Field(description="fingerprint of the engine that trained")
    max_epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = Field(
        description="that all sessions of the attempt share"
    )
    started: str = Field(description="ISO 8601, UTC")

    @property
    def player(self) -> Player:
        return Player(agent=self.agent, model=self.model, options=self.options)


class Opened(Model):
    """A session, counted from 0: at the start of the task, or where another one stands."""

    kind: Literal["session"] = "session"
    session: int
    fork_of: int | None = None
    status: TrainingStatus
    epochs: tuple[EpochReport, ...] = Field(
        default=(), description="of a run that is taken over: what somebody else has trained"
    )


class Called(Model):
    """A tool call and its answer: a status, or the error that says what would be allowed."""

    kind: Literal["call"] = "call"
    session: int
    tool: str
    arguments: dict[str, Any]
    status: TrainingStatus | None = None
    error: str | None = None
    seconds: float = Field(description="until the answer came")
    epochs: tuple[EpochReport, ...] = Field(
        default=(), description="all that it trained, of which the agent sees no more than the tail"
    )


class Remark(Model):
    """What the agent had to say, word for word: the replies of a language model."""

    kind: Literal["remark"] = "remark"
    text: str


class Ended(Model):
    """The submission. `episode_return` adds the rewards on the way to the submitted model."""

    kind: Literal["end"] = "end"
    session: int = Field(description="the one that was submitted")
    grade: Grade
    episode_return: float
    epochs: int = Field(description="trained, all sessions together")
    calls: int = Field(description="answered without an error, all sessions together")
    errors: int
    seconds: float


Line = Annotated[Header | Opened | Called | Remark | Ended, Field(discriminator="kind")]
_LINE: TypeAdapter[Line] = TypeAdapter(Line)


class Record(Model):
    """A whole attempt."""

    header: Header
    lines: tuple[Line, ...] = Field(description="between header and end")
    end: Ended

    @property
    def calls(self) -> list[Called]:
        return [line for line in self.lines if isinstance(line, Called)]


class RecordWriter:
    """Writes lines as they come; leaving the block without an error makes the file a whole one.

    A block that was left before anything was written leaves nothing. Raises `RecordInUse` while
    another writer has the same record, in this process or elsewhere on this machine.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + UNFINISHED)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._alone()
        self._is_empty = True

    def __call__(self, line: Line) -> None:
        self._is_empty = False
        self._file.write(_as_text(line) + "\n")
        self._file.flush()  # an attempt that is cut off leaves what it had

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        with self._file:  # and with it the lock, so both moves are made under it
            if self._is_empty:
                self._part.unlink(missing_ok=True)
            elif kind is None:
                os.fsync(self._file.fileno())
                self._part.replace(self._path)

    def _alone(self) -> TextIO:
        """The unfinished file, emptied and locked. The lock ends with the process at the latest."""
        while True:
            file = self._part.open("a", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(self._part, file):
                    file.truncate(0)
                    return file
            except BlockingIOError:
                file.close()
                raise RecordInUse("somebody else is recording it at the moment") from None
            except BaseException:
                file.close()
                raise
            file.close()  # whoever had the lock before has moved or removed this very file


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _as_text(line: Line) -> str:
    """As JSON. Half a surrogate pair, which UTF-8 has no bytes for, becomes a question mark."""
    try:
        return line.model_dump_json()
    except PydanticSerializationError:
        text = json.dumps(line.model_dump(), ensure_ascii=False)
        return text.encode(errors="replace").decode()


def read(path: Path) -> Record:
    """The record at `path`. Raises `BadRecord`."""
    try:
        lines = [_LINE.validate_json(text) for text in path.read_bytes().splitlines()]
    except (ValidationError, OSError) as error:
        raise BadRecord(f"{path}: {_first_fault(error)}") from error
    if len(lines) < 2:
        raise BadRecord(f"{path}: has {len(lines)} lines; a record has at least two")
    header, *between, end = lines
    if not isinstance(header, Header) or not isinstance(end, Ended):
        raise BadRecord(f"{path}: a record begins with an attempt line and ends with an end line")
    fault = _first_gap(between, header, end)
    if fault:
        raise BadRecord(f"{path}: {fault}")
    return Record(header=header, lines=tuple(between), end=end)


def _first_gap(lines: Iterable[Line], header: Header, end: Ended) -> str | None:
    """What does not fit together; None for what an attempt can have written."""
    opened = 0
    for number, line in enumerate(lines, 2):
        match line:
            case Header() | Ended():
                return f"line {number}: of kind {line.kind}, in the middle"
            case Opened():
                if line.session != opened:
                    return f"line {number}: opens session {line.session} after {opened} others"
                if line.fork_of is not None and line.fork_of not in range(opened):
                    return f"line {number}: a fork of session {line.fork_of}, which is not open"
                opened += 1
            case Called():
                if line.session not in range(opened):
                    return f"line {number}: a call of session {line.session}, which is not open"
            case Remark():
                pass
    if end.session not in range(opened):
        return f"session {end.session} is submitted, which is not open"
    if end.grade.task_id != header.task_id:
        return f"the grade is of {end.grade.task_id}, the attempt at {header.task_id}"
    return None


def find(folder: Path) -> Iterable[Path]:
    """The whole records below `folder`, in the order of their names."""
    return sorted(path for path in folder.rglob("*.jsonl") if path.is_file())


def _first_fault(error: ValidationError | OSError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'a line'}: {fault['msg']}"
