"""Schemas for providers that read a part of JSON Schema: what is left out is said in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ml_trainer_env.agents.llm.schemas import LISTED, PLAIN, PLAIN_AND_EMPTY, function
from ml_trainer_env.agents.session import Tool
from ml_trainer_env.server.episode.tools import TOOLS

KEYWORDS = {"type", "description", "properties", "required", "items", "enum"}


def tool(**schema: Any) -> Tool:
    return Tool(name="t", description="d", input_schema=schema)


def one(schema: Any, **root: Any) -> dict[str, Any]:
    """The plain form of a property with this schema."""
    told = function(tool(type="object", properties={"x": schema}, **root), PLAIN)
    return told["function"]["parameters"]["properties"]["x"]


def keywords(schema: dict[str, Any]) -> set[str]:
    inner = [*schema.get("properties", {}).values(), *filter(None, [schema.get("items")])]
    return {*schema}.union(*map(keywords, inner))


LISTED_TOOLS = [
    Tool(name=spec.name, description=spec.description, input_schema=spec.input_schema)
    for spec in TOOLS.values()
]


@pytest.mark.parametrize("listed", LISTED_TOOLS, ids=lambda listed: listed.name)
def test_the_tools_lose_nothing(listed: Tool) -> None:
    assert function(listed, LISTED)["function"]["parameters"] == listed.input_schema
    plain = function(listed, PLAIN)["function"]
    if not listed.input_schema["properties"]:
        assert "parameters" not in plain
        empty = function(listed, PLAIN_AND_EMPTY)["function"]["parameters"]
        assert empty == {"type": "object", "properties": {}}
        return
    parameters = plain["parameters"]
    assert keywords(parameters) <= KEYWORDS
    assert parameters.get("required") == listed.input_schema.get("required")
    for name, schema in listed.input_schema["properties"].items():
        told = parameters["properties"][name]
        assert told["type"] == schema["type"]
        assert all(isinstance(word, str) for word in told.get("enum", []))
        for keyword in ("description", "default", "minimum", "exclusiveMinimum", "maximum"):
            if keyword in schema:
                value = schema[keyword]
                said = value if isinstance(value, str) else json.dumps(value)
                assert said in told["description"]
        for word in schema.get("enum", []):
            assert word in told.get("enum", []) or str(word) in told["description"]


@pytest.mark.parametrize(
    ("schema", "plain"),
    [
        ({"type": "integer", "enum": [1, 2]}, {"type": "integer", "description": "one of 1, 2"}),
        ({"enum": [1, 2]}, {"type": "integer", "description": "one of 1, 2"}),
        ({"enum": ["a", "b"]}, {"type": "string", "enum": ["a", "b"]}),
        ({"const": "a"}, {"type": "string", "description": "exactly a"}),
        ({"type": ["null", "number"]}, {"type": "number"}),
        (
            {"anyOf": [{"type": "integer", "minimum": 3}, {"type": "null"}], "default": None},
            {"type": "integer", "description": "at least 3"},
        ),
        (
            {"oneOf": [{"type": "integer"}, {"type": "string"}], "description": "d"},
            {"type": "integer", "description": 'd; or {"type": "string"}'},
        ),
        (
            {"allOf": [{"type": "integer"}], "maximum": 3},
            {"type": "integer", "description": "at most 3"},
        ),
        (
            {"type": "array", "items": {"const": 2}},
            {"type": "array", "items": {"type": "integer", "description": "exactly 2"}},
        ),
        ({"type": "array"}, {"type": "array", "items": {}}),
        ({"$ref": "#/$defs/A", "description": "d"}, {"type": "boolean", "description": "d"}),
        ({"$ref": "#/nowhere"}, {}),
        (True, {}),
    ],
)
def test_a_plain_schema(schema: Any, plain: Any) -> None:
    assert one(schema, **{"$defs": {"A": {"type": "boolean"}}}) == plain


def test_a_schema_that_holds_itself_has_an_end() -> None:
    inner = {"type": "object", "properties": {"again": {"$ref": "#/$defs/A"}}}
    assert keywords(one({"$ref": "#/$defs/A"}, **{"$defs": {"A": inner}})) <= KEYWORDS
    assert one({"$ref": "#/$defs/B"}, **{"$defs": {"B": {"$ref": "#/$defs/B"}}}) == {}
