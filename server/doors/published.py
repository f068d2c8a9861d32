"""What the OpenAPI document says of the bodies that `server/doors/messages.py` checks.

OpenEnv publishes its own models, which allow more: any seed, and any further name. Guarantees that
a body is taken if and only if it is valid by the published schema, but for what depends on the
episode, and for null, which means that an option of reset was left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from openenv.core.env_server.mcp_types import CallToolAction, ListToolsAction
from openenv.core.env_server.types import StepRequest

from ml_trainer_env.server.session.reset_options import ResetOptions
from ml_trainer_env.server.validation import json_schema

EXAMPLE = {"action": {"tool_name": "configure_training", "arguments": {"learning_rate": 0.002}}}


def publish(app: FastAPI) -> None:
    """Let the document of `app` have these schemas."""
    app.openapi = _corrected(app.openapi)  # FastAPI's own way to change it


def _corrected(document: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    def corrected() -> dict[str, Any]:
        made = document()  # one dictionary, made at the first call
        made["components"]["schemas"].update(_schemas())
        return made

    return corrected


def _schemas() -> dict[str, dict[str, Any]]:
    step, listing = json_schema(StepRequest), json_schema(ListToolsAction)
    listing["required"] = ["type"]  # an action without one is a call
    step["properties"]["action"]["anyOf"] = [json_schema(CallToolAction), listing]
    step |= {"additionalProperties": False, "examples": [EXAMPLE]}
    return {"ResetRequest": json_schema(ResetOptions), "StepRequest": step}
