"""Where a request goes, whatever prefix a proxy has put in front of the server.

A proxy may serve this server below a prefix, `--root-path /env`. Some proxies strip it, others pass
it on, and servers differ in what they then call the path. Guarantee: behind `Paths`, the path of a
scope is its root path and the route, so `route_of` is what the doors are told apart by.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

WEBSOCKET = "/ws"
OPENENV_MCP = "/mcp"  # OpenEnv's own dialect, over HTTP and as a WebSocket
STANDARD_MCP = "/play/"  # the door of `server/doors/mcp/door.py`
STANDARD_MCP_ADDRESS = f"{STANDARD_MCP}mcp"
PAGE = "/web"
METRICS = "/metrics"


class Paths:
    """The middleware; the outermost one. `own`: the paths of the server's routes."""

    def __init__(self, app: ASGIApp, own: Iterable[str] = ()) -> None:
        self.app = app
        self._own = frozenset(map(_first_segment, own))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            root, route = root_of(scope), route_of(scope)
            # Of a proxy that passes the prefix on, uvicorn makes /env/env/ws. A prefix like /web
            # has to be stripped by the proxy: after it, /web is the page.
            if _first_segment(root) not in self._own:
                route = _without(root, route)
            scope = {**scope, "root_path": root, "path": root + route}
        await self.app(scope, receive, send)


def root_of(scope: Scope) -> str:
    """The prefix of the server's addresses: empty, or `/env`."""
    root = scope.get("root_path", "").strip("/")
    return f"/{root}" if root else ""


def route_of(scope: Scope) -> str:
    """The path without the prefix, of which only whole segments count."""
    return _without(root_of(scope), f"/{scope['path'].lstrip('/')}")


def _first_segment(path: str) -> str:
    return path.strip("/").partition("/")[0]


def _without(root: str, path: str) -> str:
    if path != root and not path.startswith(f"{root}/"):
        return path
    return f"/{path[len(root) :].lstrip('/')}"
