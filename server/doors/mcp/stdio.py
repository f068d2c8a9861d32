"""The standard MCP door over stdio, for desktop clients that start their servers: `ml-trainer mcp`.

The same server as over HTTP, with one session, which trains in this process. Standard output
carries the protocol and nothing else; logs and progress bars go to standard error. It ends, in the
middle of a training too, when the client closes its end or sends a signal.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from types import FrameType

from anyio import create_memory_object_stream, create_task_group
from fastmcp import FastMCP
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage

from ml_trainer_env.server.data import folder as data_folder
from ml_trainer_env.server.doors.mcp.door import mcp_server
from ml_trainer_env.server.doors.mcp.visitor import Terms
from ml_trainer_env.server.machine import ending
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session import process
from ml_trainer_env.server.settings import current
from ml_trainer_env.variables import settings_explained

PATIENCE = 1.0  # seconds that fetching gets to leave nothing behind


async def serve(server: FastMCP) -> None:
    """Serve the client at the other end of standard input and output.

    FastMCP's own `run_stdio_async` would finish every call before it ends, though nothing can be
    answered any more. So the messages are passed on here, and the last one ends it all.
    """
    low_level = server._mcp_server
    async with stdio_server() as (received, answers), create_task_group() as serving:
        passed_on, messages = create_memory_object_stream[SessionMessage | Exception]()

        async def pass_on() -> None:
            async for message in received:
                await passed_on.send(message)
            serving.cancel_scope.cancel()

        serving.start_soon(pass_on)
        await low_level.run(messages, answers, low_level.create_initialization_options())


def _prepare() -> None:
    process.load()
    process.prepare(workers=False)


@settings_explained()
def main() -> None:
    """Serve until the client goes away."""
    chosen = current()
    data_folder.require_usable()
    logging.basicConfig(level=logging.WARNING)  # standard error
    # Beside the start: the client is answered at once, and its first training waits for the rest.
    terms = Terms(chosen.mcp_task, chosen.mcp_seed, chosen.mcp_episodes)
    preparing = threading.Thread(target=_prepare, daemon=True)

    def end(number: int, _: FrameType | None) -> None:
        # Python's own answer to Ctrl-C would wait for the next line of standard input.
        ending.tell()
        preparing.join(PATIENCE)
        ending.die_of(number)

    for number in ending.SIGNALS:
        signal.signal(number, end)
    preparing.start()
    try:
        asyncio.run(serve(mcp_server(MLTrainerEnvironment, terms=terms)))
    finally:
        ending.tell()
        preparing.join(PATIENCE)


if __name__ == "__main__":
    main()
