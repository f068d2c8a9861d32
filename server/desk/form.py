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

from ml_trainer_env.server.episode.tools import TOOLS

TICKS = 20  # steps of a slider between fractions
LABELS = {  # where the name alone would read badly, or its place on the page says more
    "lr_schedule": "Learning-rate schedule",
    "new_lr": "New learning rate",
    "num_epochs": "Epochs",
    "enabled": "Augmentation on",
}
SAID_ALREADY = {"num_epochs", "enabled"}  # by their labels: no help text


@dataclass(frozen=True, slots=True)
class Field:
    """One argument of a tool and its widget."""

    name: str
    schema: Mapping[str, Any]
    widget: Component


def fields(tool: str) -> tuple[Field, ...]:
    """The arguments of `tool`, laid out where they are made, in the order of the schema."""
    schema = TOOLS[tool].input_schema
    return tuple(
        Field(name, each, widget(name, each)) for name, each in schema["properties"].items()
    )


def arguments(of: Sequence[Field], values: Sequence[Any]) -> dict[str, Any]:
    """What is in the widgets, as a tool's arguments."""
    return {field.name: value for field, value in zip(of, values, strict=True)}


def changed(wanted: Mapping[str, Any], of: Sequence[Field], now: Mapping[str, Any]) -> Any:
    """Those of `wanted` that differ from `now`, where nothing is known from their defaults."""
    known = {field.name: field.schema.get("default") for field in of} | dict(now)
    return {name: value for name, value in wanted.items() if value != known[name]}


def widget(name: str, schema: Mapping[str, Any]) -> Component:
    """The one that suits the schema: few choices are seen at once, a learning rate is typed."""
    label, info = label_of(name), "" if name in SAID_ALREADY else help_of(schema)
    common: dict[str, Any] = {
        "label": label,
        "info": info or None,
        "value": schema.get("default"),
        "elem_id": f"desk-{name.replace('_', '-')}",
        "interactive": True,
    }
    if "enum" in schema:
        return gr.Radio(choices=[(str(each), each) for each in schema["enum"]], **common)
    kind = _kind(schema)
    if kind == "boolean":
        common["value"] = bool(schema.get("default"))
        return gr.Checkbox(**common)
    low, high = schema.get("minimum"), schema.get("maximum")
    if kind == "integer" and low is not None and high is not None:
        common["value"] = schema.get("default", (low + high) // 2)
        return gr.Slider(low, high, step=1, **common)
    if name.endswith("strength") and low is not None and high is not None:
        return gr.Slider(low, high, step=(high - low) / TICKS, **common)
    return gr.Number(step=10**-4, min_width=120, placeholder=bounds_of(schema), **common)


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
    return str(schema.get("type", ""))
