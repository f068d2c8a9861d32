"""The server: OpenEnv's application over `MLTrainerEnvironment`, and the command that runs it.

`uvicorn server.app:app`, `uvicorn ml_trainer_env.server.app:app`, `python -m
ml_trainer_env.server.app` and the script `server` are the same. Importing starts nothing and loads
no torch. Starting it answers `/health` at once, while torch and the data are loaded, and fetched if
need be, beside it. The knobs are in `server/settings.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from openenv.core.env_server import ConcurrencyConfig, create_app
from openenv.core.env_server.mcp_types import CallToolAction

from ml_trainer_env.server import process
from ml_trainer_env.server.connections import Connections
from ml_trainer_env.server.ml_trainer_environment import NAME, MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings, current
from ml_trainer_env.server.validation import ActionError
from ml_trainer_env.wire import EpisodeState, StatusObservation, ToolObservation

if TYPE_CHECKING:
    from openenv.core.env_server.interfaces import Environment

log = logging.getLogger("uvicorn.error")  # uvicorn's own: where an operator looks

# OpenEnv's reaper measures from the end of the last step, so a step in progress counts as silence.
# `Connections` closes silent WebSockets to the second; the reaper, for sessions opened over HTTP,
# gets this much more than the longest step can take.
STEP_ALLOWANCE = 900.0  # seconds
GRACE = 10  # seconds that uvicorn leaves requests in progress when it is told to stop


def build(
    environment: Callable[[], Environment] = MLTrainerEnvironment,
    settings: Settings | None = None,
    warm_up: Callable[[], None] | None = None,
) -> FastAPI:
    """The application: a fresh `environment()` for every session, `warm_up()` beside the start."""
    settings = settings or current()
    timeout = settings.session_timeout or None
    app = create_app(
        environment,
        CallToolAction,
        ToolObservation,
        env_name=NAME,
        concurrency_config=ConcurrencyConfig(
            max_concurrent_envs=settings.max_sessions,
            session_timeout=timeout and timeout + STEP_ALLOWANCE,
        ),
        state_cls=EpisodeState,
        reset_observation_cls=StatusObservation,
    )
    app.add_middleware(Connections, idle_timeout=timeout)
    app.add_exception_handler(ActionError, _explain)
    if warm_up is not None:
        _run_at_start(app, warm_up)
    return app


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """The answer to a mistake over plain HTTP, where OpenEnv has none of its own."""
    return JSONResponse({"detail": str(error)}, status_code=422)


def _run_at_start(app: FastAPI, work: Callable[[], None]) -> None:
    """Add `work`, in a thread, to what the application does when it starts."""
    before = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[Any]:
        async with before(application) as state:
            task = asyncio.create_task(asyncio.to_thread(work))
            yield state
            task.cancel()

    app.router.lifespan_context = lifespan


def prepare() -> None:
    """Load torch and the three data sets, fetching what is missing; failures go to the log."""
    from ml_trainer_env.server import datasets, trainer

    if current().runner == "inline":  # else workers train, and kept memory is only lost here
        trainer.configure_process()
    try:
        trainer.engine_fingerprint(current().precision)  # refuses what the processor cannot do
        if current().runner == "pool":
            process.pool().prepare(datasets.NAMES)
        for name in datasets.NAMES:
            datasets.load(name)
    except (ValueError, datasets.DatasetUnavailable) as error:
        log.error("%s", error)  # whoever trains is told the same
    else:
        log.info("ready: torch and data are loaded")


app = build(
    partial(MLTrainerEnvironment, find_runner=process.server_runner, places=process.places()),
    warm_up=prepare,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="server", description="Serve the environment.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (%(default)s)")
    options = parser.parse_args(argv)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        timeout_graceful_shutdown=GRACE,
    )


if __name__ == "__main__":
    main()
