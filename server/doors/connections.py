"""What OpenEnv's server does not watch: clients that vanish or fall silent, and broken messages.

OpenEnv reads a connection only between two steps. So it learns of a client's end when the step is
over, a silent client keeps its place for ever, and a message that is not a JSON object ends the
session. This ASGI middleware sits before its doors and guarantees:
- `current_connection` tells the code that serves a client, at any time, whether it is still there;
- a WebSocket on which nothing has been asked for `idle_timeout` seconds is closed, which frees its
  place; a step in progress is not silence;
- what is malformed is answered with an error (`server/doors/messages.py`) and the session goes on;
- whoever finds no place is told at once, and when to try again;
- sessions are opened one after the other, so that a crowd does not hold up everybody else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml_trainer_env.server import counters
from ml_trainer_env.server.doors import messages
from ml_trainer_env.server.doors.paths import OPENENV_MCP, root_of, route_of
from ml_trainer_env.server.session.connection import Connection, current_connection
from ml_trainer_env.server.session.turnover import Turnover

READ_AHEAD = 32  # messages read while a step is in progress; beyond them, the end goes unseen
POLICY_CLOSE = 1008  # WebSocket close code: the client broke a rule, here that of the timeout


_IN_SCOPE = "ml_trainer.connection"


def connection_of(scope: Scope) -> Connection | None:
    """The connection of a request, for code that does not descend from the task that serves it."""
    return scope.get(_IN_SCOPE)


class Connections:
    """The middleware. `idle_timeout` in seconds; None: a client may be silent for ever."""

    def __init__(self, app: ASGIApp, idle_timeout: float | None = None) -> None:
        self.app = app
        self.idle_timeout = idle_timeout
        self._sessions = Turnover()
        self._opening = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and route_of(scope) in messages.WEBSOCKET_DOORS:
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST":
            await self._http(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal, root = messages.WEBSOCKET_DOORS[route_of(scope)], root_of(scope)
        connection = Connection(is_session=True)
        send = _unless_vanished(send, connection)
        ahead: asyncio.Queue[Message] = asyncio.Queue(READ_AHEAD)
        timed_out = refused = False
        connect = await receive()

        async def read_ahead() -> None:
            while not connection.lost():
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    connection.lose()
                await ahead.put(_shortened(message))

        async def next_message() -> Message:
            nonlocal timed_out
            while True:
                try:
                    async with asyncio.timeout(self.idle_timeout):
                        message = await ahead.get()
                except TimeoutError:
                    timed_out = True
                    return {"type": "websocket.disconnect", "code": POLICY_CLOSE}
                if message["type"] != "websocket.receive":
                    return message
                answer = refusal(message.get("text") or "", root)
                if answer is None:
                    return message
                await send({"type": "websocket.send", "text": answer})

        async def send_or_explain(message: Message) -> None:
            nonlocal refused
            if timed_out and message["type"] == "websocket.close":
                reason = f"nothing was asked for {self.idle_timeout:g} s"
                message = {"type": "websocket.close", "code": POLICY_CLOSE, "reason": reason}
            hinted = self._hinted(message)
            refused |= hinted is not message
            await send(hinted)

        async with _background(read_ahead()), _serving(connection), self._turn_to_open() as opened:
            await self.app(scope, _after(connect, opened, next_message), send_or_explain)
        if not refused:
            self._sessions.freed()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:  # the client went away
            return
        route = route_of(scope)
        refusal = messages.http_refusal(route, body, root_of(scope))
        if refusal is not None:
            await _answer(send, *refusal)
            return
        connection = Connection()
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            connection.lose()

        async def replay() -> Message:
            if unread:
                return unread.pop()
            await connection.wait_lost()
            return {"type": "http.disconnect"}

        start: Message | None = None

        async def send_hinted(message: Message) -> None:
            """The start waits for the body, which OpenEnv sends in one piece, for its length."""
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            hinted = self._hinted(message)
            if start is not None:
                await send(start if hinted is message else _with_length(start, hinted["body"]))
                start = None
            await send(hinted)

        scope = {**scope, _IN_SCOPE: connection}
        async with _background(watch()), _serving(connection):
            await self.app(scope, replay, send_hinted if route == OPENENV_MCP else send)

    @asynccontextmanager
    async def _turn_to_open(self) -> AsyncIterator[Callable[[], None]]:
        """Gives what ends the turn, to be called once the session is open.

        Opening one starts threads, and the event loop waits for each: with both cores busy, 64 at
        once were measured to keep `/health` waiting for 0.6 s.
        """
        await self._opening.acquire()
        with ExitStack() as turn:
            turn.callback(self._opening.release)
            yield turn.close

    def _hinted(self, message: Message) -> Message:
        """The very `message`, unless it refuses a place: then it says when to try again."""
        for part in ("text", "body"):
            answer = message.get(part)
            if answer and messages.is_refusal(answer):
                counters.SESSIONS_REFUSED.inc()
                return {**message, part: messages.with_retry_hint(answer, self._sessions.seconds)}
        return message


def _after(connect: Message, opened: Callable[[], None], receive: Receive) -> Receive:
    """`receive` after `connect`; whoever asks for more than that has opened its session."""
    unread = [connect]

    async def next_message() -> Message:
        if unread:
            return unread.pop()
        opened()
        return await receive()

    return next_message


def _shortened(message: Message) -> Message:
    """The text, as far as shows that it is too long; bytes are refused whatever they are.

    Many messages can wait in the queue.
    """
    if message["type"] != "websocket.receive":
        return message
    text = message.get("text") or ""
    return {"type": "websocket.receive", "text": text[: messages.MAX_BYTES + 1]}


def _unless_vanished(send: Send, connection: Connection) -> Send:
    """`send`, to which the end of the client is no error: nobody is left to be told."""

    async def send_or_lose(message: Message) -> None:
        try:
            await send(message)
        except OSError:
            connection.lose()

    return send_or_lose


@asynccontextmanager
async def _background(coroutine: Any):
    """Run `coroutine` beside the block, and no longer."""
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def _serving(connection: Connection):
    """The block serves `connection`, which counts as lost once the block is left."""
    token = current_connection.set(connection)
    try:
        yield
    finally:
        current_connection.reset(token)
        connection.lose()


async def _body(receive: Receive) -> bytes | None:
    """The request's body, at most one byte longer than allowed; None when the client went away."""
    body = b""
    while len(body) <= messages.MAX_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body


def _with_length(start: Message, body: bytes) -> Message:
    """The start of an answer that has this body."""
    headers = [header for header in start["headers"] if header[0] != b"content-length"]
    return {**start, "headers": [*headers, (b"content-length", b"%d" % len(body))]}


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
