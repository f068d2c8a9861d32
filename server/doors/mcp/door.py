"""The standard MCP door: what any MCP client connects to, over streamable HTTP or stdio.

One FastMCP server. Its tools are those of the session's episode, before one has begun the six, and
`begin_episode`, which exists only here; where another episode brings other tools, the client is
told that the list has changed. Its resources are the rules and the tasks, its
prompt starts an agent off. Guarantees: each
MCP session plays in an environment of its own (`server/doors/mcp/visitor.py`); `run_epochs`
reports every epoch to a client that wants to know; whoever goes away, or cancels, stops its
training at the next epoch boundary; a mistake is an answer, and ours are told without their
details.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any

from anyio import BrokenResourceError, ClosedResourceError
from fastmcp import FastMCP
from fastmcp.server.context import Context
from fastmcp.server.dependencies import get_context
from fastmcp.server.http import StarletteWithLifespan
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import Tool
from mcp.server import streamable_http
from mcp.types import ListToolsRequest, ToolListChangedNotification
from starlette.middleware import Middleware as HttpMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ml_trainer_env.models import EpochRecord, TrainingStatus
from ml_trainer_env.server.doors.connections import connection_of
from ml_trainer_env.server.doors.mcp import documents as mcp_documents
from ml_trainer_env.server.doors.mcp import rules
from ml_trainer_env.server.doors.mcp.answers import Answers
from ml_trainer_env.server.doors.mcp.visitor import ANYTHING, BEGIN, Terms, Visitor
from ml_trainer_env.server.doors.paths import STANDARD_MCP, STANDARD_MCP_ADDRESS
from ml_trainer_env.server.episode.tools import CLUSTER_TOOLS, RUN, TOOLS, tools_of
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment, version
from ml_trainer_env.server.session.connection import current_connection
from ml_trainer_env.server.session.mcp_tools import EpisodeTool
from ml_trainer_env.server.validation import json_schema

NAME = "ml-trainer"
ADDRESS = STANDARD_MCP_ADDRESS  # the one documented; OpenEnv's own dialect has /mcp itself
MOUNT = STANDARD_MCP.removesuffix("/")
PATH = ADDRESS.removeprefix(MOUNT)
SESSIONS_PER_PLACE = 4  # MCP sessions for each place of an episode: looking around takes none
VISITOR = "visitor"  # its key in a session's context


def mcp_server(
    environment: Callable[[], MLTrainerEnvironment],
    patience: float | None = None,
    terms: Terms = ANYTHING,
) -> FastMCP:
    """The server, for any transport. `patience`: seconds of silence that end an episode."""
    server = FastMCP(
        NAME, instructions=rules.in_short(BEGIN), version=version(), mask_error_details=True
    )
    server.add_tool(
        EpisodeTool.named(
            BEGIN,
            "Begin an episode of a task, with a fresh network or a begun one. An unfinished one of "
            "this session is abandoned. The answer's message is the goal.",
            json_schema(terms.arguments),
            _begin,
        )
    )
    for spec in (CLUSTER_TOOLS | TOOLS).values():
        server.add_tool(EpisodeTool.of(spec, _call))
    server.add_middleware(_ToolsOfTheEpisode())
    mcp_documents.add_to(server, terms)
    # The SDK enters this once for each session, and leaves it when the session has ended.
    server._mcp_server.lifespan = _with_a_visitor(
        server._mcp_server.lifespan, partial(Visitor, environment, patience, terms)
    )
    return server


def http_app(server: FastMCP) -> StarletteWithLifespan:
    """The door over streamable HTTP, to be mounted at `MOUNT` and run by `running`."""
    return server.http_app(
        path=PATH,
        middleware=[HttpMiddleware(_without_replay), HttpMiddleware(Answers)],
        json_response=False,
        stateless_http=False,
        host_origin_protection=False,  # `server/doors/guard.py` does it, for all doors
    )


def _without_replay(app: ASGIApp) -> ASGIApp:
    """`app`, to which nobody says which event came last.

    There is no store of events to send again from, and the SDK then gives no answer at all.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [header for header in scope.get("headers", ()) if header[0] != b"last-event-id"]
        await app({**scope, "headers": headers}, receive, send)

    return serve


@asynccontextmanager
async def running(
    app: StarletteWithLifespan, patience: float | None, places: int
) -> AsyncIterator[None]:
    """Serve sessions within the block; those without a request for `patience` seconds are ended."""
    async with app.lifespan(app):
        logging.getLogger(streamable_http.__name__).addFilter(_is_worth_a_line)
        (door,) = (route for route in app.routes if getattr(route, "path", None) == PATH)
        sessions = door.endpoint.session_manager  # pyright: ignore[reportAttributeAccessIssue]
        sessions.session_idle_timeout = patience
        sessions.max_sessions = SESSIONS_PER_PLACE * places
        yield


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """The SDK logs the end of a session as an error of its event stream, with a traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], ClosedResourceError))


# Tools ---------------------------------------------------------------------------------------


class _ToolsOfTheEpisode(Middleware):
    """What a session is listed: tools of one name differ between one network and a cluster."""

    async def on_list_tools(
        self,
        context: MiddlewareContext[ListToolsRequest],
        call_next: CallNext[ListToolsRequest, Sequence[Tool]],
    ) -> Sequence[Tool]:
        visitor, _ = _who_calls()
        (begin,) = (tool for tool in await call_next(context) if tool.name == BEGIN)
        specs = tools_of(visitor.episode).values()
        return [begin, *(EpisodeTool.of(spec, _call) for spec in specs)]


async def _begin(name: str, arguments: Mapping[str, Any]) -> TrainingStatus:
    visitor, context = _who_calls()
    before = tools_of(visitor.episode)
    status = await visitor.begin(arguments)
    if tools_of(visitor.episode) is not before:
        with suppress(ClosedResourceError, BrokenResourceError):  # nobody is left to be told
            await context.send_notification(ToolListChangedNotification())
    return status


async def _call(name: str, arguments: Mapping[str, Any]) -> TrainingStatus:
    visitor, context = _who_calls()
    if name != RUN:
        return await visitor.call(name, arguments)
    async with _epochs_reported(visitor, arguments, context) as notice:
        return await visitor.call(name, arguments, notice)


def _who_calls() -> tuple[Visitor, Context]:
    """Also: from here on, this task serves the connection of the request, if it has one.

    The task descends from the one that opened the session, whose connection is long gone.
    """
    context = get_context()
    request = context.request_context
    assert request is not None
    current_connection.set(connection_of(request.request.scope) if request.request else None)
    return request.lifespan_context[VISITOR], context


@asynccontextmanager
async def _epochs_reported(
    visitor: Visitor, arguments: Mapping[str, Any], context: Context
) -> AsyncIterator[Callable[[], None]]:
    """Report every epoch that the episode finishes within the block, and all of them by its end.

    Any thread may call what is yielded, whenever epochs may have been finished. It never waits: a
    client that reads slowly does not hold up its training.
    """
    loop = asyncio.get_running_loop()
    finished: asyncio.Queue[EpochRecord | None] = asyncio.Queue()
    episode = visitor.episode
    before = seen = episode.now.epoch if episode else 0
    left = episode.progress(episode.now)[1] if episode else 0

    def notice() -> None:
        nonlocal seen
        history = episode.now.training.history if episode else ()
        for record in history[seen:]:
            loop.call_soon_threadsafe(finished.put_nowait, record)
        seen = max(seen, len(history))

    async def report() -> None:
        while (record := await finished.get()) is not None:
            assert episode is not None
            total = min(arguments["num_epochs"], left)
            told = _told(record, episode.task.max_epochs)
            with suppress(ClosedResourceError, BrokenResourceError):  # nobody is left to be told
                await context.report_progress(record.epoch - before, total, told)

    reporting = asyncio.create_task(report())
    try:
        yield notice
        notice()
        loop.call_soon(finished.put_nowait, None)  # after all that `notice` has put
        await reporting
    finally:
        reporting.cancel()


def _told(record: EpochRecord, budget: int) -> str:
    if record.window:
        return f"step {record.window.step}: val loss {record.val_loss:.4g}"
    if record.val_accuracy is None:
        return f"epoch {record.epoch} of {budget} diverged"
    return f"epoch {record.epoch} of {budget}: val accuracy {record.val_accuracy:.4f}"


# Sessions ----------------------------------------------------------------------------------------

Lifespan = Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]


def _with_a_visitor(lifespan: Lifespan, make_visitor: Callable[[], Visitor]) -> Lifespan:
    """`lifespan`, with a visitor in the context of each session for as long as that lasts."""

    @asynccontextmanager
    async def session(low_level: Any) -> AsyncIterator[dict[str, Any]]:
        async with lifespan(low_level) as context:
            visitor = make_visitor()
            try:
                yield {**context, VISITOR: visitor}
            finally:
                visitor.close()

    return session
