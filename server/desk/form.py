"""Form fields from the JSON schemas of the tools: kind, bounds, choices, default and help text.

A number that is typed is not clamped or refused by the page: the server answers what is wrong with
it, as it answers an agent.
"""

# gradio leaves most types open:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from ml_trainer_env.server.episode.tools import TOOLS, ToolSpec

ONE_OF_WHAT_THERE_IS = "step"  # which is told later
TICKS = 20  # steps of a slider between fractions
LABELS = {  # where the name alone would read badly, or its place on the page says more
    "lr_schedule": "Learning-rate schedule",
    "new_lr": "New learning rate",
    "num_epochs": "Epochs",
    "enabled": "Augmentation on",
    "step": "Checkpoint of step",
    "exclude": "Out",
    "use_spare": "Fresh host for",
    "quarantine_shards": "Data shards out",
}
WHOLE = {  # forms show how things stand, and always send it
    "exclude": "all ranks that are to be out",
    "quarantine_shards": "all data shards that are to be out, 4 at most",
}
SAID_ALREADY = {"num_epochs", "enabled"}  # by their labels: no help text


@dataclass(frozen=True, slots=True)
class Field:
    """One argument of a tool and its widget."""

    name: str
    schema: Mapping[str, Any]
    widget: Component


def fields(tool: str, known: Mapping[str, ToolSpec] = TOOLS, prefix: str = "") -> tuple[Field, ...]:
    """The arguments of `tool`, laid out where they are made, in the order of the schema.

    `prefix`: of the ids of their elements, where another form has the same names.
    """
    schema = known[tool].input_schema
    return tuple(
        Field(name, each, widget(name, each, prefix)) for name, each in schema["properties"].items()
    )


def arguments(of: Sequence[Field], values: Sequence[Any]) -> dict[str, Any]:
    """What is in the widgets, as a tool's arguments."""
    return {
        field.name: numbers(value) if isinstance(field.widget, gr.Textbox) else value
        for field, value in zip(of, values, strict=True)
    }


def numbers(text: str) -> list[int | str] | None:
    """`4, 4, 8` as a list; nothing where nothing is written. What is no number stays as it is, and
    the server says what is wrong with it.
    """
    parts = text.replace(",", " ").split()
    return [int(part) if part.isdecimal() else part for part in parts] or None


def changed(wanted: Mapping[str, Any], of: Sequence[Field], now: Mapping[str, Any]) -> Any:
    """Those of `wanted` that differ from `now`, where nothing is known from their defaults."""
    known = {field.name: field.schema.get("default") for field in of} | dict(now)
    return {name: value for name, value in wanted.items() if value != known[name]}


def widget(name: str, schema: Mapping[str, Any], prefix: str = "") -> Component:
    """The one that suits the schema: few choices are seen at once, a learning rate is typed."""
    label, info = label_of(name), "" if name in SAID_ALREADY else help_of(schema)
    common: dict[str, Any] = {
        "label": label,
        "info": info or None,
        "value": schema.get("default"),
        "elem_id": f"desk-{prefix}{name.replace('_', '-')}",
        "interactive": True,
    }
    if "enum" in schema:
        return _one_of(schema, common)
    kind = _kind(schema)
    if kind == "array":
        return _list(name, schema, common)
    if kind == "boolean":
        common["value"] = bool(schema.get("default"))
        return gr.Checkbox(**common)
    low, high = schema.get("minimum"), schema.get("maximum")
    if name == ONE_OF_WHAT_THERE_IS:
        return gr.Dropdown(choices=[], **common)
    if kind == "integer" and low is not None and high is not None:
        common["value"] = schema.get("default", (low + high) // 2)
        return gr.Slider(low, high, step=1, **common)
    if name.endswith("strength") and low is not None and high is not None:
        return gr.Slider(low, high, step=(high - low) / TICKS, **common)
    return gr.Number(step=10**-4, min_width=120, placeholder=bounds_of(schema), **common)


def _one_of(schema: Mapping[str, Any], common: dict[str, Any]) -> Component:
    """Where the help text says what each choice is, each has its own line."""
    told = dict(part.split(": ", 1) for part in help_of(schema).split("; ") if ": " in part)
    if told.keys() != set(schema["enum"]):
        return gr.Radio(choices=[(str(each), each) for each in schema["enum"]], **common)
    choices = [(f"{each}: {told[each]}", each) for each in schema["enum"]]
    common |= {"info": None}
    return gr.Radio(choices=choices, elem_classes="desk-rows", **common)


def _list(name: str, schema: Mapping[str, Any], common: dict[str, Any]) -> Component:
    """Those of few are ticked; of ranks it is told later how many there are."""
    items = next(each["items"] for each in (schema, *schema.get("anyOf", ())) if "items" in each)
    if "exclusiveMaximum" not in items:  # numbers, each of which may come again
        common["value"] = ""
        return gr.Textbox(placeholder="4, 4, 4, 4", **common)
    choices = [(str(each), each) for each in range(items["exclusiveMaximum"])]
    common |= {"value": [], "info": WHOLE.get(name, common["info"])}
    return gr.CheckboxGroup(choices=choices, elem_classes="desk-ticks", **common)


def label_of(name: str) -> str:
    """`learning_rate` as one would write it: Learning rate."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


def help_of(schema: Mapping[str, Any]) -> str:
    """What the agent is told of the argument, and for what is typed its bounds."""
    told = str(schema.get("description", ""))
    bounds = bounds_of(schema) if _kind(schema) == "number" else ""
    return f"{told}; {bounds}" if told and bounds else told or bounds


def bounds_of(schema: Mapping[str, Any]) -> str:
    """`above 0, at most 10`."""
    if "exclusiveMinimum" in schema:
        return f"above {schema['exclusiveMinimum']:g}, at most {schema['maximum']:g}"
    return f"{schema['minimum']:g} to {schema['maximum']:g}"


def _kind(schema: Mapping[str, Any]) -> str:
    if any(each.get("type") == "array" for each in schema.get("anyOf", ())):
        return "array"  # or left out
    return str(schema.get("type", ""))
