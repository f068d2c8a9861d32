"""The standard MCP door over stdio, for desktop clients that start their servers: `ml-trainer mcp`.

The same server as over HTTP, with one session, which trains in this process. Standard output
carries the protocol and nothing else; logs and progress bars go to standard error. When the client
closes its end, what it asked for is finished and answered, and the server ends; by a signal it ends
at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from functools import partial

from ml_trainer_env.server import process
from ml_trainer_env.server.mcp_door import mcp_server
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment


def main() -> None:
    """Serve until the client goes away."""
    logging.basicConfig(level=logging.WARNING)  # standard error
    # Python's own answer to Ctrl-C would wait for the next line of standard input.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Beside the start: the client is answered at once, and its first training waits for the rest.
    threading.Thread(target=partial(process.prepare, workers=False), daemon=True).start()
    asyncio.run(mcp_server(MLTrainerEnvironment).run_stdio_async(show_banner=False))


if __name__ == "__main__":
    main()
