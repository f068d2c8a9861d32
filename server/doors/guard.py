"""Who may come in: the first thing that every request meets, at whichever door.

An ASGI middleware. Guarantees, before anything else sees the request:
- with a token, nobody without it gets past, over HTTP or a WebSocket; `/health` alone is open. It
  comes as `Authorization: Bearer TOKEN`; a browser, at the page, is asked for it as a password;
- a page of another site cannot use a visitor's browser to talk to the MCP door or a WebSocket;
- whatever goes wrong further in, and is not answered there, is answered without its details.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml_trainer_env.server import counters
from ml_trainer_env.server.doors.paths import OPENENV_MCP, PAGE, STANDARD_MCP, route_of
from ml_trainer_env.server.doors.sites import written_alike

log = logging.getLogger("uvicorn.error")  # uvicorn's own: where an operator looks

OPEN = "/health"
POLICY_CLOSE = 1008  # WebSocket close code: a rule was broken
DENIAL = "websocket.http.response"  # ASGI's extension: refuse a WebSocket with an HTTP answer


class Guard:
    """The middleware. Without a `token` everybody may come in; `origins`: other sites that may."""

    def __init__(
        self, app: ASGIApp, token: SecretStr | None = None, origins: Collection[str] = ()
    ) -> None:
        self.app = app
        self._token = token.get_secret_value().encode() if token else None
        self._origins = frozenset(map(written_alike, origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._serve(scope, receive, send)
        elif scope["type"] == "http" or DENIAL in scope.get("extensions", {}):
            await refusal(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": POLICY_CLOSE})

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """The answer to a request that may not come in."""
        headers = Headers(scope=scope)
        route = route_of(scope)
        browser_door = (
            scope["type"] == "websocket" or route == OPENENV_MCP or route.startswith(STANDARD_MCP)
        )
        if browser_door and not self._origin_is_welcome(scope, headers):
            detail = "this origin may not use the server; it can be listed in ML_TRAINER_ORIGINS"
            return JSONResponse({"detail": detail}, 403)
        if self._token is None or route == OPEN or self._is_token(_given_token(headers)):
            return None
        scheme = 'Basic realm="ml-trainer", charset="UTF-8"' if _is_page(route) else "Bearer"
        detail = "this server needs its token: Authorization: Bearer TOKEN"
        return JSONResponse({"detail": detail}, 401, {"WWW-Authenticate": scheme})

    def _is_token(self, given: bytes) -> bool:
        """In constant time, so that nobody can find the token out byte by byte."""
        assert self._token is not None
        return hmac.compare_digest(given, self._token)

    def _origin_is_welcome(self, scope: Scope, headers: Headers) -> bool:
        """No browser, a listed site, or the very host that was asked.

        The last one holds for a site that resolves its own name to this machine, too (DNS
        rebinding). So who comes by the loopback address has to have asked for it by its name.
        """
        origin = headers.get("origin")
        if origin is None or written_alike(origin) in self._origins:
            return True
        host = headers.get("host", "").lower()
        server = scope.get("server")
        rebound = server and _is_loopback(server[0]) and not _is_loopback(_name(f"//{host}"))
        return _netloc(origin) == host and not rebound

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except Exception:
            if scope["type"] != "http" or begun:
                raise
            counters.FAILURES.inc()
            log.exception("a request failed")
            answer = JSONResponse({"detail": "the server failed; the reason is in its log"}, 500)
            await answer(scope, receive, send)


def _is_page(route: str) -> bool:
    return route == "/" or route.startswith(PAGE)


def _given_token(headers: Headers) -> bytes:
    """The token that came with a request; empty when there is none."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")  # how Starlette decoded it
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _name(url: str) -> str:
    """The host without its port and brackets."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
