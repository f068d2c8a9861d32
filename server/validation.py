"""One way to check what comes from outside: against a Pydantic model, or an error that teaches.

Guarantees: the message of `InvalidArguments` names every offending field, what it may be, and what
it was; the allowed values come from the model itself, so they are declared once. It is plain ASCII
of bounded length whatever was sent, so it can be sent back in any protocol.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

M = TypeVar("M", bound=BaseModel)

MAX_SHOWN = 60  # characters of a value or a name that was sent
MAX_FAULTS = 12  # faults named in one message


class ActionError(ValueError):
    """The agent asked for what cannot be done; the message says what can. Nothing has changed."""


class InvalidArguments(ActionError):
    """A name, a type or a value that does not exist."""


def validate(model: type[M], values: Mapping[str, Any], *, subject: str) -> M:
    """`values` as a `model`; `subject` is who takes these arguments, for the messages.

    A null for a field that has a default means that it was left out: language models fill in
    optional arguments that way. Raises `InvalidArguments`.
    """
    fields = model.model_fields
    names = ", ".join(fields) or "no arguments"
    faults = [
        f"{shown(name)}: unknown; {subject} takes {names}" for name in values if name not in fields
    ]
    given = {
        name: value
        for name, value in values.items()
        if name in fields and not (value is None and not fields[name].is_required())
    }
    try:
        valid = model.model_validate(given)
    except ValidationError as error:
        faults += [_fault(model, subject, detail) for detail in error.errors()]
    else:
        if not faults:
            return valid
    more = len(faults) - MAX_FAULTS
    told = faults[:MAX_FAULTS] + ([f"and {more} more"] if more > 0 else [])
    raise InvalidArguments("; ".join(told))


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of `model` for a reader who pays for each word: no titles, no docstring."""
    schema = {k: v for k, v in _schema(model).items() if k not in ("title", "description")}
    schema["properties"] = {
        name: {k: v for k, v in field.items() if k != "title"}
        for name, field in schema.get("properties", {}).items()
    }
    return schema


def shown(value: object) -> str:
    """`value` as JSON in ASCII, cut to `MAX_SHOWN` characters. Never fails."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):  # not JSON, too long a number, too deep
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _fault(model: type[BaseModel], subject: str, detail: ErrorDetails) -> str:
    """One fault: `learning_rate: must be a number with 0 < learning_rate <= 10; got -1`."""
    location = detail["loc"]
    field = str(location[0]) if location else subject
    rule = _rule(field, _schema(model)["properties"].get(field, {})) or detail["msg"]
    if detail["type"] == "missing":
        return f"{field}: is required; {rule}"
    return f"{field}: {rule}; got {shown(detail['input'])}"


def _rule(name: str, schema: Mapping[str, Any]) -> str:
    """What a field's JSON schema allows, in words; empty when it says nothing that helps."""
    if "anyOf" in schema:  # an optional field: null is spoken of nowhere
        kinds: list[dict[str, Any]] = schema["anyOf"]
        return _rule(name, next(kind for kind in kinds if kind.get("type") != "null"))
    if "enum" in schema:
        return f"must be one of {', '.join(json.dumps(value) for value in schema['enum'])}"
    if "const" in schema:
        return f"must be {json.dumps(schema['const'])}"
    match schema.get("type"):
        case "boolean":
            return "must be true or false"
        case "integer":
            return f"must be a whole number{_bounds(name, schema)}"
        case "number":
            return f"must be a number{_bounds(name, schema)}"
        case "string":
            longest = schema.get("maxLength")
            return "must be a string" + (f" of 1 to {longest} characters" if longest else "")
        case "object":
            return "must be an object"
        case _:
            return ""


def _bounds(name: str, schema: Mapping[str, Any]) -> str:
    low, high = "", ""
    if "minimum" in schema:
        low = f"{schema['minimum']} <= "
    elif "exclusiveMinimum" in schema:
        low = f"{schema['exclusiveMinimum']} < "
    if "maximum" in schema:
        high = f" <= {schema['maximum']}"
    return f" with {low}{name}{high}" if low or high else ""


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()
