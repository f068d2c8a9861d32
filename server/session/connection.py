"""Whether the client that is being served is still there; asked from any thread."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

from ml_trainer_env.server.runtime.asking import Bell


class Connection:
    """One client. `lost` may be asked from any thread; `is_session`: the session ends with it."""

    def __init__(self, *, is_session: bool = False) -> None:
        self.is_session = is_session
        self._gone = asyncio.Event()
        self._bells: set[Bell] = set()

    def lost(self) -> bool:
        return self._gone.is_set()

    def lose(self) -> None:
        self._gone.set()
        for bell in tuple(self._bells):
            bell.ring()

    def rings(self, bell: Bell) -> None:
        """Ring it when the client is lost."""
        self._bells.add(bell)

    def forgets(self, bell: Bell) -> None:
        self._bells.discard(bell)

    async def wait_lost(self) -> None:
        await self._gone.wait()


current_connection: ContextVar[Connection | None] = ContextVar("current_connection", default=None)
