"""What tests do at the standard MCP door, with FastMCP's client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastmcp import Client

from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.server.mcp_door import ADDRESS

T = TypeVar("T")


def client(url: str, **options: Any) -> Client[Any]:
    return Client(url + ADDRESS, **options)


def run(scenario: Callable[[], Awaitable[T]], seconds: float = 60) -> T:
    """`scenario()` to its end; a hang is a failure."""

    async def limited() -> T:
        return await asyncio.wait_for(scenario(), seconds)

    return asyncio.run(limited())


async def call(session: Client[Any], tool: str, /, **arguments: Any) -> TrainingStatus:
    """The structured result of a call."""
    result = await session.call_tool(tool, arguments)
    return TrainingStatus.model_validate_json(json.dumps(result.structured_content))


async def refused(session: Client[Any], tool: str, /, **arguments: Any) -> str:
    """The message of a call that is an error."""
    result = await session.call_tool(tool, arguments, raise_on_error=False)
    assert result.is_error, result
    return text_of(result.content[0])


def text_of(part: Any) -> str:
    """Of a content or a resource that is text."""
    assert isinstance(part.text, str)
    return part.text
