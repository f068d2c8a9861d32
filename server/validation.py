"""One way to check what comes from outside: against a Pydantic model, or an error that teaches.

Guarantees: the message of `InvalidArguments` names every offending field, what it may be, and what
it was; the allowed values come from the model itself, so they are declared once. It is plain ASCII
of bounded length whatever was sent, so it can be sent back in any protocol. What is valid by the
model's JSON schema is taken, and nothing else is: 5.0 is a whole number, "5" and true are none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

M = TypeVar("M", bound=BaseModel)

MAX_SHOWN = 60  # characters of a value or a name that was sent
MAX_FAULTS = 12  # faults named in one message


class ActionError(ValueError):
    """The agent asked for what cannot be done; the message says what can. Nothing has changed."""


class InvalidArguments(ActionError):
    """A name, a type or a value that does not exist."""


def validate(
    model: type[M], values: Mapping[str, Any], *, subject: str, null_is_absent: bool = True
) -> M:
    """`values` as a `model`; `subject` is who takes these arguments, for the messages.

    A null for a field that has a default means that it was left out, unless `null_is_absent` is
    false: language models fill in optional arguments that way. Raises `InvalidArguments`.
    """
    fields, schema = model.model_fields, _properties(model)
    names = ", ".join(fields) or "no arguments"
    faults = [
        f"{shown(name)}: unknown; {subject} takes {names}" for name in values if name not in fields
    ]
    given = {
        name: _number(value, schema[name])
        for name, value in values.items()
        if name in fields
        and not (value is None and null_is_absent and not fields[name].is_required())
    }
    try:
        valid = model.model_validate(given, strict=True)
    except ValidationError as error:
        # A field of several types has a fault for each, and one message tells them all.
        faults += dict.fromkeys(_fault(model, subject, each, values) for each in error.errors())
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


def _number(value: object, schema: Mapping[str, Any]) -> object:
    """`value`; a whole number as one, however it is written: JSON has one kind of numbers."""
    if isinstance(value, list):
        items = [kind["items"] for kind in _kinds(schema) if "items" in kind]
        of_each: Mapping[str, Any] = items[0] if items else {}
        return [_number(each, of_each) for each in cast("list[object]", value)]
    if isinstance(value, float) and value.is_integer():
        return (
            int(value) if any(kind.get("type") == "integer" for kind in _kinds(schema)) else value
        )
    return value


def _fault(
    model: type[BaseModel], subject: str, detail: ErrorDetails, sent: Mapping[str, Any]
) -> str:
    """One fault: `learning_rate: must be a number with 0 < learning_rate <= 10; got -1`."""
    location = detail["loc"]
    field = str(location[0]) if location else subject
    rule = _rule(field, _properties(model).get(field, {})) or detail["msg"]
    if detail["type"] == "missing":
        return f"{field}: is required; {rule}"
    return f"{field}: {rule}; got {shown(sent.get(field, detail['input']))}"


def _rule(name: str, schema: Mapping[str, Any]) -> str:
    """What a field's JSON schema allows, in words; empty when it says nothing that helps."""
    if "anyOf" in schema:
        rules = [_rule(name, kind) for kind in _kinds(schema)]
        return " or ".join([rules[0], *(rule.removeprefix("must be ") for rule in rules[1:])])
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
        case "string" if "examples" in schema:
            more = f" ({schema['description']})" if "description" in schema else ""
            return f"must be like {json.dumps(schema['examples'][0])}{more}"
        case "string":
            least, most = schema.get("minLength", 0), schema.get("maxLength")
            return "must be a string" + (f" of {least} to {most} characters" if most else "")
        case "object":
            return "must be an object"
        case "array":
            return f"must be a list of whole numbers{_bounds('each', schema.get('items', {}))}"
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


def _kinds(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a field may be, one by one; null, which stands for leaving it out, is not told."""
    kinds: list[Mapping[str, Any]] = schema.get("anyOf", [schema])
    return [kind for kind in kinds if kind.get("type") != "null"]


def _properties(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    return _schema(model).get("properties", {})


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()
