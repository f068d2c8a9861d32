"""Whether the client that is being served is still there; asked from any thread."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar


class Connection:
    """One client. `lost` may be asked from any thread."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    def lost(self) -> bool:
        return self._gone.is_set()

    def lose(self) -> None:
        self._gone.set()

    async def wait_lost(self) -> None:
        await self._gone.wait()


current_connection: ContextVar[Connection | None] = ContextVar("current_connection", default=None)
