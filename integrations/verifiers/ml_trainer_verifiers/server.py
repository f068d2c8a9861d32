"""One session on the server, over its WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)
from websockets.asyncio.client import ClientConnection, connect

Json = dict[str, Any]

PATIENCE_S = 180.0  # for a server that is full
_FULL = "CAPACITY_REACHED"
TIMEOUT_S = 900.0  # 20 epochs of the hard task on a slow and busy machine


class Refused(RuntimeError):
    """The server did not take a message, with its reason."""


class Session:
    """Made by `begun`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def reset(self, **options: Any) -> Json:
        """Begin an episode. Raises `Refused`."""
        return await self._ask("reset", options)

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
            reason = answer["data"]
            raise Refused(f"{reason.get('message')} (code: {reason.get('code')})")
        return answer["data"]


@asynccontextmanager
async def begun(url: str, token: str | None, **options: Any) -> AsyncIterator[tuple[Session, Json]]:
    """A session on the server at `url` and the status of its episode, which `options` begin.

    A full server is waited for. The place is free again after the block. Raises `Refused`.
    """
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(lambda error: _FULL in str(error)),
        stop=stop_after_delay(PATIENCE_S),
        wait=wait_random_exponential(multiplier=0.1, max=10),
        reraise=True,
    ):
        with attempt:
            socket = await _connected(url, token)
            try:
                status = (await Session(socket).reset(**options))["observation"]["status"]
            except BaseException:
                await socket.close()
                raise
    try:
        yield Session(socket), status
    finally:
        await socket.close()


async def _connected(url: str, token: str | None) -> ClientConnection:
    return await connect(
        url.replace("http", "ws", 1).rstrip("/") + "/ws",
        additional_headers={"Authorization": f"Bearer {token}"} if token else None,
        ping_timeout=TIMEOUT_S,
        max_size=None,
    )
