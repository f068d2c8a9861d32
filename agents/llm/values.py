"""JSON whose shape nobody promised: its parts by their types, and text that can be shown.

Pure functions that raise nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, cast

Fields = dict[str, Any]

LONGEST = 100_000  # characters of arguments, and of a text that is searched for calls
DEPTH = 8  # levels of objects that are looked through


def parsed(text: str) -> object:
    """The JSON value; None where it is none."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def written(value: object) -> str:
    """A text as it is, anything else as JSON."""
    try:
        return (value if isinstance(value, str) else json.dumps(value))[:LONGEST]
    except (ValueError, RecursionError):  # too long a number, or too deep
        return "..."


def fields(value: object) -> Fields | None:
    """The object, if it is one."""
    return cast(Fields, value) if isinstance(value, dict) else None


def items(value: object) -> list[object]:
    """What is in the list, if it is one."""
    return cast(list[object], value) if isinstance(value, list) else []


def objects(value: object) -> list[Fields]:
    """The objects in a list, or the one that stands where a list should."""
    values = cast(list[object], value) if isinstance(value, list) else [value]
    return [cast(Fields, each) for each in values if isinstance(each, dict)]


def all_objects(
    value: object, without: Collection[str] = (), depth: int = DEPTH
) -> Iterator[Fields]:
    """All objects within the value, the outer ones first; those in fields `without` left out."""
    if depth == 0:
        return
    found = fields(value) or {}
    if found:
        yield found
    inner = [each for name, each in found.items() if name not in without]
    for each in inner or items(value):
        yield from all_objects(each, without, depth - 1)


def clean(text: str) -> str:
    """What can be encoded, and shown on a terminal."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in whole)
