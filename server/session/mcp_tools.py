"""The tools for MCP: as FastMCP tools, and as the client that OpenEnv's `/mcp` door uses.

Both call the same function as `step` does, so the rules hold at every door.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Any

from fastmcp.exceptions import ToolError
from fastmcp.tools import Tool
from fastmcp.tools.base import ToolResult as McpResult
from mcp.types import TextContent
from mcp.types import Tool as McpTool
from pydantic import PrivateAttr

from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.server.episode.tools import ToolSpec
from ml_trainer_env.server.session.waiting import InternalError
from ml_trainer_env.server.validation import ActionError
from ml_trainer_env.wire import TextBlock, ToolResult

Call = Callable[[str, Mapping[str, Any]], Awaitable[TrainingStatus]]


class EpisodeTool(Tool):
    """A tool of a FastMCP server: what a standard MCP client sees."""

    _call: Call = PrivateAttr()

    @classmethod
    def of(cls, spec: ToolSpec, call: Call) -> EpisodeTool:
        return cls.named(spec.name, spec.description, spec.input_schema, call)

    @classmethod
    def named(
        cls, name: str, description: str, input_schema: dict[str, Any], call: Call
    ) -> EpisodeTool:
        tool = cls(
            name=name,
            description=description,
            parameters=input_schema,
            output_schema=_status_schema(),
        )
        tool._call = call
        return tool

    async def run(self, arguments: dict[str, Any]) -> McpResult:
        try:
            status = await self._call(self.name, arguments)
        except (ActionError, InternalError) as error:
            raise ToolError(str(error), log_level=logging.DEBUG) from None
        return McpResult(
            content=[TextContent(type="text", text=TextBlock.of(status).text)],
            structured_content=status.model_dump(mode="json"),
            # With one, the SDK does not hold the result against its schema, which a status fits by
            # its type: that would take 15 ms of the event loop.
            meta={},
        )


class DirectClient:
    """What OpenEnv's server uses of `fastmcp.Client`, without its in-memory transport.

    A call runs in the task of the request. So it knows when the request's client is gone, which a
    call behind the transport does not, and it saves 2 ms.
    """

    def __init__(self, specs: Callable[[], Mapping[str, ToolSpec]], call: Call) -> None:
        """`specs`: the tools that there are at the moment."""
        self._specs = specs
        self._call = call

    async def __aenter__(self) -> DirectClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def is_connected(self) -> bool:
        return True

    async def list_tools(self) -> list[McpTool]:
        return [
            McpTool(
                name=spec.name,
                description=spec.description,
                inputSchema=spec.input_schema,
                outputSchema=_status_schema(),
            )
            for spec in self._specs().values()
        ]

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Raises `ActionError`, whose message OpenEnv sends on verbatim."""
        return ToolResult.of(await self._call(name, arguments))


@cache
def _status_schema() -> dict[str, Any]:
    return TrainingStatus.model_json_schema(mode="serialization")
