"""The record of an attempt: one JSON Lines file, readable without this package.

The first line says who plays what (`attempt`); then come every session that was opened (`session`),
every call with its answer, reward and reward terms (`call`), what a model said (`remark`), and at
the end the score (`end`). Numbers are written so that they are read back to the bit.

A file appears under its name when the attempt has ended; until then it ends in `.part`. So a file
without that ending is whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError

from ml_trainer_env.models import EpochReport, Grade, Model, TaskId, TrainingStatus

FORMAT = 2  # of the file; readers refuse others
UNFINISHED = ".part"


class BadRecord(ValueError):
    """Not a whole record in this format; the message names the file and what is wrong."""


class Header(Model):
    """Who plays what. With the calls, all that the bits depend on."""

    kind: Literal["attempt"] = "attempt"
    format: Literal[2] = FORMAT
    agent: str
    model: str | None = Field(default=None, description="the language model, where there is one")
    task_id: TaskId
    task_version: int
    seed: int
    engine: str | None = Field(description="fingerprint of the engine that trained")
    max_epochs: int = Field(description="that all sessions of the attempt share")
    started: str = Field(description="ISO 8601, UTC")


class Opened(Model):
    """A session, counted from 0: at the start of the task, or where another one stands."""

    kind: Literal["session"] = "session"
    session: int
    fork_of: int | None = None
    status: TrainingStatus


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
    """Writes lines as they come; leaving the block without an error makes the file a whole one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(path.name + UNFINISHED)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("w", encoding="utf-8")

    def __call__(self, line: Line) -> None:
        self._file.write(line.model_dump_json() + "\n")
        self._file.flush()  # an attempt that is cut off leaves what it had

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self._part.replace(self._path)


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
    return Record(header=header, lines=tuple(between), end=end)


def find(folder: Path) -> Iterable[Path]:
    """The whole records below `folder`, in the order of their names."""
    return sorted(folder.rglob("*.jsonl"))


def _first_fault(error: ValidationError | OSError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'a line'}: {fault['msg']}"
