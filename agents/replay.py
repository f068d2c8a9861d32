"""Playing a record again, and comparing every answer with the recorded one, bit for bit.

What differs from one machine and hour to the next is left out of the comparison, and nothing
else: times, and which epochs another session had trained already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from typing import Any

from pydantic import JsonValue

from ml_trainer_env.agents.attempt import Attempt, Refused
from ml_trainer_env.agents.records import Called, Ended, Header, Line, Opened, Record, Remark
from ml_trainer_env.agents.session import Connect

_CIRCUMSTANCES: Any = {
    "seconds": True,
    "started": True,
    "epochs": {"__all__": {"seconds", "shared"}},
}
MISSING = "absent"


class OtherVersion(Exception):
    """The task has changed since: its grades and rewards are others, whatever the bits."""


def replay(attempt: Attempt, record: Record) -> None:
    """Open the recorded sessions and make the recorded calls, in their order."""
    for line in record.lines:
        if isinstance(line, Opened):
            if line.fork_of is None:
                attempt.begin()
            else:
                attempt.fork(attempt.trials[line.fork_of])
        elif isinstance(line, Remark):
            attempt.remark(line.text)
        elif isinstance(line, Called):
            with suppress(Refused):  # it is on record, like the refusal that it repeats
                attempt.trials[line.session].call(line.tool, **line.arguments)


def verify(record: Record, connect: Connect) -> list[str]:
    """What comes out differently when `record` is played again; empty when nothing does.

    Raises `OtherVersion`, before anything is trained.
    """
    lines: list[Line] = []
    header = record.header

    def refuse_another_version(line: Line) -> None:
        if isinstance(line, Header) and line.task_version != header.task_version:
            raise OtherVersion(
                f"was played on version {header.task_version} of {header.task_id}, and this is "
                f"version {line.task_version}: its rewards and scores are not to be compared"
            )

    observers = [refuse_another_version, lines.append]
    with Attempt(header.player, connect, header.task_id, header.seed, observers) as attempt:
        replay(attempt, record)
    recorded = [header, *record.lines, record.end]
    return [
        f"{_name(number, old or new)}: {difference}"
        for number, (old, new) in enumerate(zip_longest(recorded, lines), 1)
        for difference in _differences(old, new)
    ]


def _differences(old: Line | None, new: Line | None) -> Iterator[str]:
    before, after = dict(_leaves(_comparable(old))), dict(_leaves(_comparable(new)))
    for path in before | after:
        was, now = before.get(path, MISSING), after.get(path, MISSING)
        if was != now:
            yield f"{path} was {was!r}, is {now!r}"


def _comparable(line: Line | None) -> JsonValue:
    return None if line is None else line.model_dump(mode="json", exclude=_CIRCUMSTANCES)


def _leaves(value: JsonValue, path: str = "") -> Iterator[tuple[str, JsonValue]]:
    """The values inside `value`, each with where it is."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _leaves(child, f"{path}[{index}]")
    else:
        yield path, value


def _name(number: int, line: Line | None) -> str:
    match line:
        case Called():
            return f"line {number}, {line.tool}"
        case Header() | Opened() | Ended() | Remark():
            return f"line {number}, {line.kind}"
        case None:
            return f"line {number}"
