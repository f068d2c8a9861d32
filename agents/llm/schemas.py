"""The tools as the protocol's functions, and in the plainer forms that some providers need.

Providers read a part of JSON Schema, each another one. A plainer form keeps types, properties and
lists of words; what it leaves out is said in the descriptions, so that the model knows it all the
same. Pure functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from ml_trainer_env.agents.session import Tool

Schema = dict[str, Any]

LISTED, PLAIN, PLAIN_AND_EMPTY = range(3)  # as listed; plainer; and no tool without parameters
NESTED = 8  # levels of a schema that are followed

_WORDS = {  # how keywords are said; all others say nothing about a value that a model may need
    "minimum": "at least {}",
    "exclusiveMinimum": "greater than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "matching {}",
    "format": "in the format {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "const": "exactly {}",
    "default": "{} by default",
}


def function(tool: Tool, form: int = LISTED) -> Schema:
    """A tool of the environment in this form."""
    told: Schema = {"name": tool.name, "description": tool.description}
    parameters = tool.input_schema
    if form != LISTED:
        parameters = _plain(parameters, _finder(parameters))
        parameters.setdefault("properties", {})
    if form != PLAIN or parameters["properties"]:
        told["parameters"] = parameters
    return {"type": "function", "function": told}


def _finder(root: Schema) -> Callable[[str], Schema]:
    """What a `$ref` within `root` stands for; where it leads nowhere, anything."""

    def find(reference: str) -> Schema:
        found: Any = root
        for name in reference.removeprefix("#/").split("/"):
            found = cast(Schema, found).get(name) if isinstance(found, dict) else None
        return cast(Schema, found) if isinstance(found, dict) else {}

    return find


def _plain(schema: Schema | bool, find: Callable[[str], Schema], depth: int = NESTED) -> Schema:
    schema = _single({} if isinstance(schema, bool) else schema, find)  # true: anything
    kind = _kind(schema)
    plain: Schema = {"type": kind} if kind else {}
    told = [schema["description"]] if schema.get("description") else []
    for keyword, words in _WORDS.items():
        if schema.get(keyword) is not None:
            told.append(words.format(_said(schema[keyword])))
    if choices := schema.get("enum"):
        if kind == "string":
            plain["enum"] = [choice for choice in choices if isinstance(choice, str)]
        else:
            told.append(f"one of {', '.join(map(_said, choices))}")
    if schema.get("additionalProperties") is False and schema.get("properties"):
        told.append("no others")
    if told:
        plain["description"] = "; ".join(told)
    if depth and kind == "object":
        properties = cast(dict[str, Schema | bool], schema.get("properties", {}))
        plain["properties"] = {n: _plain(s, find, depth - 1) for n, s in properties.items()}
        if required := [name for name in schema.get("required", ()) if name in properties]:
            plain["required"] = required
    if depth and kind == "array":
        plain["items"] = _plain(schema.get("items") or {}, find, depth - 1)
    return plain


def _single(schema: Schema, find: Callable[[str], Schema]) -> Schema:
    """Without references, and of alternatives the first that is a value; the others are told."""
    for _ in range(NESTED):
        schema = dict(schema)
        if reference := schema.pop("$ref", None):
            schema = find(reference) | schema
        parts: list[Schema] = schema.pop("allOf", [])
        for part in parts:
            schema = part | schema
        for keyword in ("anyOf", "oneOf"):
            given: list[Schema] = schema.pop(keyword, [])
            kinds = [kind for kind in given if kind.get("type") != "null"]
            schema = kinds[0] | schema if kinds else schema
            if len(kinds) > 1:
                told = [schema.get("description"), f"or {' or '.join(map(_said, kinds[1:]))}"]
                schema["description"] = "; ".join(filter(None, told))
    return schema


def _kind(schema: Schema) -> str | None:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((k for k in cast(list[str], kind) if k != "null"), None)
    if kind is None and "properties" in schema:
        return "object"
    values: list[object] = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if kind is None and values:
        names = {"str": "string", "bool": "boolean", "int": "integer", "float": "number"}
        return names.get(type(values[0]).__name__)
    return kind


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
