"""Whose pages may read the server's answers in a visitor's browser: CORS, at every door.

An ASGI middleware, Starlette's, outside of `Guard`. Guarantees: a page of a listed site may ask
(its preflight needs no token) and may read every answer, refusals included; no other site is
allowed anything, whatever the page's own program, Gradio, would allow it.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CORS = b"access-control-"


def written_alike(origin: str) -> str:
    """An origin as browsers write it."""
    origin = origin.rstrip("/").lower()
    port = {"http": ":80", "https": ":443"}.get(origin.partition("://")[0], "")
    return origin.removesuffix(port)


class Sites(CORSMiddleware):
    """The middleware. `origins`: the listed sites."""

    def __init__(self, app: ASGIApp, origins: Collection[str] = ()) -> None:
        super().__init__(
            app,
            allow_origins=frozenset(map(written_alike, origins)),
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),  # MCP and its clients invent new ones
            allow_private_network=True,  # the site is on the internet, the server at home
            expose_headers=("Mcp-Session-Id", "WWW-Authenticate"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = Headers(scope=scope).get("origin") if scope["type"] == "http" else None
        if origin is None or self.is_allowed_origin(origin):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, _without_cors(send))

    def is_allowed_origin(self, origin: str) -> bool:
        return written_alike(origin) in self.allow_origins

    async def simple_response(
        self, scope: Scope, receive: Receive, send: Send, request_headers: Headers
    ) -> None:
        async def send_ours(message: Message) -> None:
            await self.send(message, send=send, request_headers=request_headers)

        await self.app(scope, receive, _without_cors(send_ours))


def _without_cors(send: Send) -> Send:
    """`send`, which takes out what an application further in says of other sites."""

    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            kept = [header for header in headers if not header[0].lower().startswith(_CORS)]
            message = {**message, "headers": kept}
        await send(message)

    return send_on
