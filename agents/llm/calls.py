"""Tool calls as models and providers write them, in the fields of a message or in its text.

Pure functions. Guarantees: a call that can be understood is found; its arguments are a JSON object
that can be sent on, without lone surrogates, or the reason why they are not. Nothing is raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from pydantic_core import from_json

from ml_trainer_env.agents.llm import values
from ml_trainer_env.agents.llm.values import LONGEST, Fields, clean, written

NAME = 200  # characters of a tool's name

_NAMES = ("name", "tool", "tool_name")
_ARGUMENTS = ("arguments", "parameters", "input", "args")
_INNER = ("function", "function_call", "functionCall", "custom", "tool_call")
_KEYS = {*_NAMES, *_ARGUMENTS, *_INNER, "id", "type", "index"}
_THOUGHTS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"))
_TAGGED = re.compile(r"<function=\W?([\w.-]+)[^{<]{0,9}$")  # right before its arguments
_FENCED = re.compile(r"\s*```\w*\s*(.*?)\s*```\s*", re.DOTALL)
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A call as the model wrote it. No name: it wrote none. No arguments: `fault` says why."""

    name: str
    arguments: Fields | None
    written: str  # the arguments
    fault: str = ""


def listed(calls: object) -> list[Fields]:
    """Calls in a list, alone, by a key of their own, or in JSON."""
    if isinstance(calls, str) and calls.lstrip()[:1] in ("[", "{"):
        calls = values.parsed(calls)
    alone = values.fields(calls)
    if alone is None or _KEYS & alone.keys():
        return values.objects(calls)
    return values.objects([*alone.values()])


def called(call: Fields, tools: Collection[str], cut_off: bool = False) -> ToolRequest:
    """A call in any shape. `cut_off`: the reply was, so its arguments may be missing."""
    within = (values.fields(call.get(key)) for key in _INNER)
    places = (next((inner for inner in within if inner), call), call)
    names = [place.get(key) for place in places for key in (*_NAMES, "function")]
    name = clean(next((name for name in names if isinstance(name, str)), ""))
    name = name.partition("<|")[0].strip()  # a model's own mark, which its server let through
    if name not in tools and (last := name.rpartition(".")[2]) in tools:
        name = last  # `functions.run_epochs`
    given = [place.get(key) for place in places for key in _ARGUMENTS]
    arguments = next((value for value in given if value is not None), None)
    return _with_arguments(name[:NAME], arguments, cut_off)


def _with_arguments(name: str, given: object, cut_off: bool = False) -> ToolRequest:
    """The arguments may be an object, JSON of one, JSON of that, or nothing at all."""
    try:
        value = _decoded(given)
        if value is None and cut_off:
            raise ValueError("they are missing")
        text = json.dumps({} if value is None else value, allow_nan=False)
        if len(text) > LONGEST:
            raise ValueError(f"they have more than {LONGEST} characters")
        arguments = from_json(_without_surrogates(text))  # which also limits how deep they are
        if not isinstance(arguments, dict):
            raise ValueError(f"got {text}")
    except (ValueError, RecursionError) as error:
        cut = ", and the reply was cut off at the length limit" if cut_off else ""
        return ToolRequest(name, None, clean(written(given)), clean(f"{error}{cut}"))
    return ToolRequest(name, cast(Fields, arguments), text)


def _decoded(value: object) -> object:
    """None where nothing is given. Raises ValueError and RecursionError."""
    for _ in range(3):
        if not isinstance(value, str):
            break
        if len(value) > LONGEST:
            raise ValueError(f"they have more than {LONGEST} characters")
        fenced = _FENCED.fullmatch(value)
        text = fenced[1] if fenced else value
        value = json.loads(text) if text.strip() else None
    return None if value == [] else value  # how PHP writes an object without fields


def _without_surrogates(text: str) -> str:
    """JSON in ASCII, without the lone ones."""
    if "\\ud" not in text:
        return text
    return json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace").decode()


def in_text(text: str, tools: Collection[str]) -> list[ToolRequest]:
    """Calls of tools that stand as JSON objects in the text, after any thinking aloud."""
    for begin, end in _THOUGHTS:
        text = text.rpartition(end)[2].partition(begin)[0]
    text = text[:LONGEST]
    found: list[ToolRequest] = []
    start = text.find("{")
    while start >= 0:
        try:
            value, after = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            after = start + 1
        else:
            tag = _TAGGED.search(text, max(0, start - NAME), start)
            if tag and tag[1] in tools:
                found.append(_with_arguments(tag[1], value))
            else:
                found += _calls_in(cast(Fields, value), tools)
        start = text.find("{", after)
    return found


def _calls_in(value: Fields, tools: Collection[str]) -> list[ToolRequest]:
    """An object that a model wrote: a call, a list of calls, or the arguments by a tool's name.

    What has a description is the tool itself.
    """
    if "tool_calls" in value:
        requests = [called(call, tools) for call in listed(value["tool_calls"])]
        return [request for request in requests if request.name in tools]
    if len(value) == 1 and (name := next(iter(value))) in tools:
        return [_with_arguments(name, value[name])]
    request = called(value, tools)
    is_call = value.keys() <= _KEYS or any(key in value for key in _ARGUMENTS)
    return [request] if request.name in tools and is_call and "description" not in value else []
