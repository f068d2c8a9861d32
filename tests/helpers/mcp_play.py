"""What tests do at the standard MCP door: with FastMCP's client, and by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
from fastmcp import Client

from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.server.doors.mcp.door import ADDRESS

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


def request(number: int, method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def tool_call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    return request(number, "tools/call", name=name, arguments=arguments)


HEADERS = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "by hand", "version": "1"},
}


class ByHand:
    """An MCP session without a client library, and without an event stream of its own."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, headers=HEADERS, timeout=10)
        self._ids = iter(range(1, 10**9))
        self.http.headers["mcp-session-id"] = self.open().headers["mcp-session-id"]
        self.send(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))

    def __enter__(self) -> ByHand:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def open(self) -> httpx.Response:
        """Ask for a session."""
        return self.ask("initialize", HELLO)

    def end(self) -> httpx.Response:
        return self.http.delete(ADDRESS)

    def send(self, body: str | bytes) -> httpx.Response:
        return self.http.post(ADDRESS, content=body)

    def ask(self, method: str, params: Any) -> httpx.Response:
        request = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        return self.send(json.dumps(request))

    def call(self, tool: str, /, **arguments: Any) -> httpx.Response:
        return self.ask("tools/call", {"name": tool, "arguments": arguments})

    def works(self) -> bool:
        return '"result":{}' in self.ask("ping", {}).text
