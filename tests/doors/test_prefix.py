"""Below a prefix, behind a proxy that strips it or passes it on: every door as without one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
from fakes import FakeRunner
from hypothesis import given
from hypothesis import strategies as st
from live import serving, with_page
from mcp_play import call, client, run
from starlette.types import Message, Receive, Scope, Send
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.server.doors.mcp.visitor import BEGIN
from ml_trainer_env.server.doors.messages import MAX_BYTES
from ml_trainer_env.server.doors.paths import Paths, root_of, route_of
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings

TOKEN = "s3cret"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
# --root-path, and what the proxy leaves in front of a path. uvicorn adds the root path by itself.
SET_UPS = [("", ""), ("/env", ""), ("/env", "/env"), ("/env/", ""), ("/a/b", "/a/b"), ("/mcp", "")]


@pytest.fixture(scope="module", params=SET_UPS, ids=lambda pair: "{}-{}".format(*pair))
def set_up(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def root(set_up: tuple[str, str]) -> str:
    """What addresses begin with outside."""
    return set_up[0].rstrip("/")


@pytest.fixture(scope="module")
def base(set_up: tuple[str, str]) -> Iterator[str]:
    """Where the proxy would ask."""
    root_path, kept = set_up
    environment = partial(MLTrainerEnvironment, FakeRunner())
    settings = Settings.model_validate({"token": TOKEN, "session_timeout": 0.5})
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ENABLE_WEB_INTERFACE", "true")
        app = with_page(environment, settings)
    with serving(app, root_path=root_path) as url:
        yield url + kept


def opened(base: str, path: str = "/ws") -> ClientConnection:
    return connect(f"ws{base[4:]}{path}", additional_headers=AUTHORIZED, proxy=None)


def test_every_door_is_what_it_is_without_a_prefix(base: str, root: str) -> None:
    assert httpx.get(base + "/health").json() == {"status": "healthy"}
    for path in ("/metadata", "/web/", "/"):
        assert httpx.get(base + path).status_code == 401
    for path in ("/ws", "/mcp"):
        with pytest.raises(InvalidStatus), connect(f"ws{base[4:]}{path}", proxy=None):
            pass
    long = b'{"x": "' + b"y" * MAX_BYTES + b'"}'
    assert httpx.post(base + "/reset", content=long, headers=AUTHORIZED).status_code == 413

    for path in ("/", "/web"):
        there = httpx.get(base + path, headers=AUTHORIZED).headers["location"]
        assert there == f"{root}/web/"
    page = httpx.get(base + "/web/", headers=AUTHORIZED)
    page_root = re.search(r'"root":"http://[^/"]+([^"]*)"', page.text)
    assert page_root is not None
    assert page_root[1] == f"{root}/web"
    assert (
        httpx.get(base + "/docs/", headers=AUTHORIZED).headers["location"].endswith(f"{root}/docs")
    )


def test_websockets_are_protected(base: str) -> None:
    with opened(base) as socket:
        socket.send("nonsense")
        assert json.loads(socket.recv(timeout=10))["data"]["code"] == "INVALID_JSON"
        with pytest.raises(ConnectionClosed, match="nothing was asked for"):
            socket.recv(timeout=10)


def test_clients_play(base: str) -> None:
    with MLTrainerEnv(base_url=base, headers=AUTHORIZED) as env:
        assert not env.reset().done

    async def scenario() -> None:
        async with client(base, auth=TOKEN) as session:
            assert (await call(session, BEGIN)).task_id == "easy_mnist"

    run(scenario)


STANDARD = ["initialize", "ping", "notifications/initialized", "resources/list", "prompts/get"]


def test_a_standard_client_at_openenvs_door_is_told_the_way(base: str, root: str) -> None:
    for method in STANDARD:
        request = {"jsonrpc": "2.0", "id": 7, "method": method, "params": {}}
        answer = httpx.post(base + "/mcp", json=request, headers=AUTHORIZED).json()
        assert answer["id"] == 7
        assert answer["error"]["code"] == -32601
        assert f"connect to {root}/play/mcp" in answer["error"]["message"]
        with opened(base, "/mcp") as socket:
            socket.send(json.dumps(request))
            assert json.loads(socket.recv(timeout=10)) == answer
    for method in ("GET", "DELETE"):
        refused = httpx.request(method, base + "/mcp", headers=AUTHORIZED)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        assert f"connect to {root}/play/mcp" in refused.json()["detail"]


# The rule itself ---------------------------------------------------------------------------------

ROUTES = ["/ws", "/mcp", "/play/mcp", "/health", "/", "/environment"]
SEGMENTS = st.lists(st.sampled_from(["env", "a", "environment", "web", "mcp"]), max_size=3)


async def seen_inside(scope: Scope) -> Scope:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    async def nothing() -> Message:
        raise AssertionError

    async def nobody(message: Message) -> None:
        raise AssertionError

    await Paths(app, ROUTES)(scope, nothing, nobody)
    return scopes[0]


@given(SEGMENTS, st.sampled_from(ROUTES))
def test_whoever_adds_the_prefix_the_route_is_the_same(segments: list[str], route: str) -> None:
    root = "".join(f"/{segment}" for segment in segments)
    told = {"type": "http", "root_path": root}
    for path in (root + route, route):  # ASGI says the first, hypercorn the second
        if path == route and f"{route}/".startswith(f"{root}/") and root:
            continue  # cannot be told apart
        scope = run(partial(seen_inside, {**told, "path": path}))
        assert (root_of(scope), route_of(scope)) == (root, route)
        assert scope["path"] == root + route


@given(SEGMENTS.filter(bool), st.sampled_from(ROUTES))
def test_uvicorn_behind_a_proxy_that_passes_the_prefix_on(segments: list[str], route: str) -> None:
    root = "".join(f"/{segment}" for segment in segments)
    scope = {"type": "http", "root_path": root, "path": root + root + route}
    seen = run(partial(seen_inside, scope))
    is_a_door = segments[0] in ("mcp", "environment")  # and may well be meant
    assert route_of(seen) == (root + route if is_a_door else route)


@pytest.mark.parametrize("path", ["/environment/ws", "/envws", "/en/ws"])
def test_only_whole_segments_are_a_prefix(path: str) -> None:
    assert route_of({"root_path": "/env", "path": path}) == path
