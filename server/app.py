"""The server: OpenEnv's application over `MLTrainerEnvironment`, and the command that runs it.

`uvicorn server.app:app`, `uvicorn ml_trainer_env.server.app:app`, `python -m
ml_trainer_env.server.app` and the script `server` are the same. Importing starts nothing, reads no
settings and loads no torch: `app` is built when it is asked for, and answers `/health` at once,
while workers start and load the data, which are fetched if need be. The knobs are in
`server/settings.py`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything is imported that takes long
    import sys

    from ml_trainer_env.server.serve import main

    sys.exit(main())

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse
from openenv.core.env_server import ConcurrencyConfig, create_app
from openenv.core.env_server.mcp_types import CallToolAction
from starlette.routing import Mount

from ml_trainer_env.server import serve
from ml_trainer_env.server.data import folder as data_folder
from ml_trainer_env.server.doors import metrics
from ml_trainer_env.server.doors.connections import Connections
from ml_trainer_env.server.doors.guard import Guard
from ml_trainer_env.server.doors.mcp import door as mcp_door
from ml_trainer_env.server.doors.mcp.visitor import Terms
from ml_trainer_env.server.doors.messages import where_standard_mcp_is
from ml_trainer_env.server.doors.paths import METRICS, OPENENV_MCP, PAGE, Paths, root_of
from ml_trainer_env.server.doors.published import publish
from ml_trainer_env.server.doors.sites import Sites
from ml_trainer_env.server.machine import alone, ending
from ml_trainer_env.server.ml_trainer_environment import NAME, MLTrainerEnvironment
from ml_trainer_env.server.runtime.runner import Runner
from ml_trainer_env.server.runtime.states import allow_many_files
from ml_trainer_env.server.session import process
from ml_trainer_env.server.session.places import Places
from ml_trainer_env.server.session.waiting import details_in_the_log
from ml_trainer_env.server.settings import Settings, current
from ml_trainer_env.server.validation import ActionError
from ml_trainer_env.variables import settings_explained
from ml_trainer_env.wire import EpisodeState, StatusObservation, ToolObservation

if TYPE_CHECKING:
    from gradio import Blocks

TITLE = "ML Training Optimizer"
SHARED = ("/web/reset", "/web/step", "/web/state", "/ws/ui")
TO_THE_PAGE = ("/", PAGE)

# OpenEnv's reaper measures from the end of the last step, so a step in progress counts as silence.
# `Connections` closes silent WebSockets to the second; the reaper, for sessions opened over HTTP,
# gets this much more than the longest step can take.
STEP_ALLOWANCE = 900.0  # seconds
PATIENCE = 2.0  # seconds that work beside the requests gets to stop
RARELY = 1000  # collections of the middle generation to a full one; Python: 10


def build(
    environment: Callable[[], MLTrainerEnvironment] = MLTrainerEnvironment,
    settings: Settings | None = None,
    load: Callable[[], None] | None = None,
    warm_up: Callable[[], None] | None = None,
    places: Places[MLTrainerEnvironment] | None = None,
    find_runner: Callable[[], Runner] | None = None,
) -> FastAPI:
    """The application: a fresh `environment()` for every session.

    `load()` comes before the server listens, `warm_up()` runs beside its first requests.
    `places` is where those environments are counted, and where the page finds whom to watch;
    `find_runner()` is what they train on, for the metrics.
    """
    settings = settings or current()

    def desk(*_: Any) -> Blocks:  # OpenEnv asks for it only where the page is enabled
        from ml_trainer_env.server.desk import page

        return page.build(environment, places.guests if places else tuple, settings)

    timeout = settings.session_timeout or None
    environment = partial(_made, environment)
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
        gradio_builder=desk,
        show_default_tab=False,  # OpenEnv's own page has one environment for all its visitors
        title_override=TITLE,
    )
    _remove_shared_environment(app)
    publish(app)
    _redirect_to_the_page(app)
    _add_standard_mcp(app, environment, settings)
    app.add_api_route(METRICS, metrics.door(places, find_runner), include_in_schema=False)
    app.add_middleware(Connections, idle_timeout=timeout)
    app.add_middleware(Guard, token=settings.token, origins=settings.origins)
    app.add_middleware(Sites, origins=settings.origins)
    own = [path for route in app.router.routes if (path := getattr(route, "path", None))]
    app.add_middleware(Paths, own=own)  # outermost
    app.add_exception_handler(ActionError, _explain)
    if load is not None:
        _run_within(app, partial(_first, load))
    if warm_up is not None:
        _run_within(app, partial(_beside, warm_up))
    return app


def _made(environment: Callable[[], MLTrainerEnvironment]) -> MLTrainerEnvironment:
    with details_in_the_log():
        return environment()


async def _explain(_: Request, error: Exception) -> JSONResponse:
    """The answer to a mistake over plain HTTP, where OpenEnv has none of its own."""
    return JSONResponse({"detail": str(error)}, status_code=422)


def _remove_shared_environment(app: FastAPI) -> None:
    """OpenEnv's page has routes to one environment for all, which would keep a place for ever."""
    _remove(app, SHARED)


def _redirect_to_the_page(app: FastAPI) -> None:
    """Where there is one; OpenEnv's redirects leave the server's prefix out."""

    async def redirect(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{root_of(request.scope)}{PAGE}/")

    if _remove(app, TO_THE_PAGE):
        for path in TO_THE_PAGE:
            app.add_api_route(path, redirect, include_in_schema=False)


def _remove(app: FastAPI, paths: Sequence[str]) -> int:
    """Take the routes with these paths out, mounted applications apart; how many there were."""
    gone = [
        route
        for route in app.router.routes
        if getattr(route, "path", None) in paths and not isinstance(route, Mount)
    ]
    app.router.routes[:] = [route for route in app.router.routes if route not in gone]
    return len(gone)


def _add_standard_mcp(
    app: FastAPI, environment: Callable[[], MLTrainerEnvironment], settings: Settings
) -> None:
    """Mount `server/doors/mcp/door.py`, and say where it is to whoever comes to another door."""

    async def elsewhere(request: Request) -> JSONResponse:
        detail = where_standard_mcp_is(root_of(request.scope))
        return JSONResponse({"detail": detail}, 405, {"Allow": "POST"})

    app.add_api_route(OPENENV_MCP, elsewhere, methods=["GET", "DELETE"], include_in_schema=False)
    timeout = settings.session_timeout or None
    terms = Terms(settings.mcp_task, settings.mcp_seed, settings.mcp_episodes)
    door = mcp_door.http_app(mcp_door.mcp_server(environment, timeout, terms))
    app.mount(mcp_door.MOUNT, door)
    _run_within(app, lambda: mcp_door.running(door, timeout, settings.max_sessions))


def _run_within(app: FastAPI, context: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    """Let `context()` hold for as long as the application runs."""
    before = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[Any]:
        async with before(application) as state, context():
            yield state

    app.router.lifespan_context = lifespan


@asynccontextmanager
async def _first(work: Callable[[], None]) -> AsyncIterator[None]:
    """`work()`, while nobody can ask for anything yet."""
    with ending.at_once():
        work()
    yield


@asynccontextmanager
async def _beside(work: Callable[[], None]) -> AsyncIterator[None]:
    """`work()` in a thread beside the block, which is told when the process is to end."""
    thread = threading.Thread(target=work, daemon=True)
    with ending.heard():
        thread.start()
        try:
            yield
        finally:
            ending.tell()
            await asyncio.to_thread(thread.join, PATIENCE)


def load() -> None:
    """Do now what would hold the event loop up later.

    That is importing torch, in a process that trains itself, and full garbage collections: they
    went through all that is imported, which stays, and through 350 objects of each open session,
    0.25 s in the middle of 512. A session leaves ten objects in cycles: 13,000 of them may wait.
    """
    alone.refuse_company()
    allow_many_files()
    if current().runner == "inline":
        process.load()
        alone.refuse_company()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], RARELY)


def prepare() -> None:
    """Start the workers, if any, and have the data loaded."""
    process.prepare(workers=current().runner == "pool")


@cache
def application() -> FastAPI:
    """The one of this process. Raises `SettingsError`."""
    current()
    data_folder.require_usable()
    return build(
        partial(MLTrainerEnvironment, find_runner=process.server_runner, places=process.places()),
        load=load,
        warm_up=prepare,
        places=process.places(),
        find_runner=process.server_runner,
    )


def __getattr__(name: str) -> FastAPI:
    """`app`, for uvicorn, which would show a traceback for settings that cannot be used."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with settings_explained():
        return application()


@settings_explained()
def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted: where OpenEnv looks for `server/serve.py`."""
    serve.main(argv)
