"""Answers of the standard MCP door in a form that the client reads.

The SDK wants both of its forms named in `Accept`, letter by letter, and answers 406 to `*/*`, to no
header at all, and to whoever reads JSON alone. This ASGI middleware understands the header as HTTP
defines it: an event stream for whoever takes one, else the answer alone as JSON, and 406 when
neither would be read.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from openenv.core.env_server.mcp_types import JsonRpcErrorCode, JsonRpcResponse
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STREAM, JSON = "text/event-stream", "application/json"


def quality(accept: str | None, media_type: str) -> float:
    """How much the client wants this type, 0 (not at all) to 1: what its closest range says."""
    if not accept or not accept.strip():
        return 1.0
    main = media_type.partition("/")[0]
    closeness = {"*/*": 1, f"{main}/*": 2, media_type: 3}
    best, wanted = 0, 0.0
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        if closeness.get(name, 0) > best:
            best, wanted = closeness[name], _q(parameters)
    return wanted


def _q(parameters: list[str]) -> float:
    """What is no quality counts as none given."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            with suppress(ValueError):
                return float(value) if 0 <= float(value) <= 1 else 1.0
    return 1.0


class Answers:
    """The middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "POST"):
            await self.app(scope, receive, send)
            return
        accept = ", ".join(Headers(scope=scope).getlist("accept"))
        takes_stream = quality(accept, STREAM) > 0
        if scope["method"] == "POST" and not takes_stream and quality(accept, JSON) > 0:
            await self.app(_asking_for_both(scope), receive, _AsJson(send))
        elif takes_stream:
            await self.app(_asking_for_both(scope), receive, send)
        else:
            forms = STREAM if scope["method"] == "GET" else f"{STREAM} or {JSON}"
            problem = f"Not Acceptable: the answer is {forms}, which the header Accept rules out"
            await _error(406, problem)(scope, receive, send)


def _asking_for_both(scope: Scope) -> Scope:
    others = [header for header in scope["headers"] if header[0] != b"accept"]
    return {**scope, "headers": [*others, (b"accept", f"{JSON}, {STREAM}".encode())]}


def _error(status: int, problem: str) -> JSONResponse:
    answer = JsonRpcResponse.error_response(JsonRpcErrorCode.INVALID_REQUEST, problem)
    return JSONResponse(answer.model_dump(), status)


class _AsJson:
    """A `send` that makes JSON of an event stream: the one message that answers the request."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None  # of a stream, until all of it is here
        self._events = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_stream(message):
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._events += message.get("body", b"")
            if not message.get("more_body", False):
                await self._answer(self._start)

    async def _answer(self, start: Message) -> None:
        found = _answer_in(self._events)
        if found is None:
            response = _error(500, "the session ended before there was an answer")
        else:
            response = JSONResponse(found, start["status"])
        framing = (b"content-type", b"content-length", b"transfer-encoding")
        kept = [header for header in start["headers"] if header[0].lower() not in framing]
        headers = [*response.raw_headers, *kept]
        await self._send({**start, "status": response.status_code, "headers": headers})
        await self._send({"type": "http.response.body", "body": response.body})


def _is_stream(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith(STREAM)


def _answer_in(events: bytes) -> dict[str, Any] | None:
    """The JSON-RPC response among the notifications."""
    for line in events.splitlines():
        if line.startswith(b"data:"):
            message = json.loads(line.removeprefix(b"data:"))
            if "result" in message or "error" in message:
                return message
    return None
