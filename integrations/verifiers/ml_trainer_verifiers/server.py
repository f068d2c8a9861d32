"""One session on the server, over its WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

Json = dict[str, Any]

TIMEOUT_S = 900.0  # 20 epochs of the hard task on a slow and busy machine


class Refused(RuntimeError):
    """The server did not take a message, with its reason."""


class Session:
    """Made by `opened`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def reset(self, **options: Any) -> Json:
        """The status of the new episode. Raises `Refused`."""
        return (await self._ask("reset", options))["observation"]["status"]

    async def tools(self) -> list[Json]:
        """Names, descriptions and schemas."""
        return (await self._ask("step", {"type": "list_tools"}))["observation"]["tools"]

    async def call(self, tool: str, arguments: Json) -> Json:
        """`status` of the call, or `error`, and its `reward`."""
        action = {"type": "call_tool", "tool_name": tool, "arguments": arguments}
        answer = await self._ask("step", action)
        observation = answer["observation"]
        error = observation.get("error")
        status = None if error else observation["result"]["data"]
        return {"status": status, "error": error, "reward": answer.get("reward") or 0.0}

    async def _ask(self, kind: str, data: Json) -> Json:
        await self._socket.send(json.dumps({"type": kind, "data": data}))
        answer = json.loads(await self._socket.recv())
        if answer["type"] == "error":
            raise Refused(answer["data"].get("message", "no reason given"))
        return answer["data"]


@asynccontextmanager
async def opened(url: str, token: str | None) -> AsyncIterator[Session]:
    """A session on the server at `url`; its place is free again after the block."""
    address = url.replace("http", "ws", 1).rstrip("/") + "/ws"
    headers = {"Authorization": f"Bearer {token}"} if token else None
    async with connect(
        address,
        additional_headers=headers,
        ping_timeout=TIMEOUT_S,
        max_size=None,
    ) as socket:
        yield Session(socket)
