"""An answer that comes as a stream of events, though nobody asked for one: put together again.

Some gateways stream whatever is asked. Pure functions.
"""

from __future__ import annotations

import re

from ml_trainer_env.agents.llm import faults, values
from ml_trainer_env.agents.llm.faults import Fault
from ml_trainer_env.agents.llm.values import Fields

_LINE = re.compile(r"\r\n|\n|\r")  # and no other: JSON may hold the separators of Unicode
_FIELD = re.compile(r"(?:data|event|id|retry)?:")
_DONE = "[DONE]"


def is_one(text: str) -> bool:
    """Whether it begins like one."""
    return _FIELD.match(text) is not None


def merged(text: str) -> object:
    """The one completion, or an error, that the events make together. Raises `Fault`."""
    events = _events(text)
    parts: list[str] = []
    calls: dict[str, Fields] = {}
    finish, answered = None, False
    for chunk in (values.parsed(event) for event in events if event != _DONE):
        if faults.is_error(chunk):
            return chunk
        for choice in values.objects((values.fields(chunk) or {}).get("choices"))[:1]:
            if values.fields(choice.get("message")):
                return chunk
            _add(values.fields(choice.get("delta")) or {}, parts, calls)
            finish, answered = choice.get("finish_reason") or finish, True
    if not answered or (finish is None and _DONE not in events):
        raise Fault("an event stream that ends before the answer does")
    message = {"content": "".join(parts), "tool_calls": list(calls.values())}
    return {"choices": [{"finish_reason": finish, "message": message}]}


def _events(text: str) -> list[str]:
    """The data of each."""
    events: list[str] = []
    data: list[str] = []
    for line in [*_LINE.split(text), ""]:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").strip())
        elif not line and data:
            events.append("\n".join(data))
            data = []
    return events


def _add(delta: Fields, parts: list[str], calls: dict[str, Fields]) -> None:
    """What this piece adds to the text, and to the calls by their index."""
    if isinstance(content := delta.get("content"), str):
        parts.append(content)
    pieces = delta.get("tool_calls") or {"function": delta.get("function_call")}
    for piece in values.objects(pieces):
        more = values.fields(piece.get("function"))
        if more is None:
            continue
        goes_on = bool(calls) and not more.get("name")  # without an index
        key = piece.get("index", len(calls) - 1 if goes_on else len(calls))
        call = calls.setdefault(str(key), {"name": "", "arguments": ""})
        call["name"] = call["name"] or more.get("name") or ""
        arguments = more.get("arguments")
        if isinstance(arguments, str) and isinstance(call["arguments"], str):
            call["arguments"] += arguments
        elif arguments is not None:
            call["arguments"] = arguments
