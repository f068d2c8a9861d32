"""Safe to expose: the token, origins, limits, and errors without details, at every door."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import pytest
from fakes import FakeRunner
from guarded import HTTP_DOORS, TOKEN, Broken, bearer
from live import serving
from mcp_play import call, client, refused, run
from openenv.core.env_server.mcp_types import CallToolAction
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from ml_trainer_env.agents.session import RemoteSession
from ml_trainer_env.client import MLTrainerEnv
from ml_trainer_env.server.app import build
from ml_trainer_env.server.doors.mcp.door import ADDRESS
from ml_trainer_env.server.doors.mcp.visitor import BEGIN
from ml_trainer_env.server.doors.messages import MAX_BYTES
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings


@pytest.fixture(scope="module")
def serve_module() -> Iterator[Callable[..., str]]:
    with ExitStack() as servers:

        def start(**settings: Any) -> str:
            environment = partial(MLTrainerEnvironment, FakeRunner())
            app = build(environment, Settings.model_validate(settings))
            return servers.enter_context(serving(app))

        yield start


@pytest.fixture(scope="module")
def guarded(serve_module: Callable[..., str]) -> str:
    return serve_module(token=TOKEN)


@pytest.fixture(scope="module")
def open_to_all(serve_module: Callable[..., str]) -> str:
    return serve_module(origins="https://friend.example, https://other.example:8443/")


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"any:{password}".encode()).decode()}


# The token -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), HTTP_DOORS)
def test_nobody_without_the_token_gets_past(guarded: str, method: str, path: str) -> None:
    answer = httpx.request(method, guarded + path)
    assert answer.status_code == 401
    assert "Bearer TOKEN" in answer.json()["detail"]
    page = path == "/" or path.startswith("/web")
    assert answer.headers["www-authenticate"].startswith("Basic realm" if page else "Bearer")
    for headers in (bearer(TOKEN), basic(TOKEN)):
        assert httpx.request(method, guarded + path, headers=headers).status_code != 401


@pytest.mark.parametrize(
    "authorization",
    [
        *("", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN),
        *(f"Bearer {TOKEN.upper()}", f"Digest {TOKEN}", "Basic", "Basic ????", "Basic Zm9v"),
        *(basic("wrong")["Authorization"], basic("")["Authorization"], "Bearer \u00e9"),
    ],
)
def test_what_is_not_the_token_does_not_open(guarded: str, authorization: str) -> None:
    headers = {b"Authorization": authorization.encode("latin-1")}
    assert httpx.get(guarded + "/metadata", headers=headers).status_code == 401


def test_health_is_open(guarded: str) -> None:
    assert httpx.get(guarded + "/health").json() == {"status": "healthy"}


@pytest.mark.parametrize("path", ["/ws", "/mcp", "/no/such/path"])
def test_a_websocket_without_the_token_is_refused(guarded: str, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(f"ws{guarded[4:]}{path}", proxy=None):
        pass
    assert refused.value.response.status_code == 401
    assert "Bearer TOKEN" in json.loads(refused.value.response.body)["detail"]


def test_clients_bring_the_token(guarded: str) -> None:
    session = RemoteSession(guarded, TOKEN)
    assert session.begin("easy_mnist", 0).task_id == "easy_mnist"
    session.close()
    with MLTrainerEnv(base_url=guarded, headers=bearer(TOKEN)) as env:
        env.reset()
        assert len(env.list_tools()) == 6

    async def scenario() -> None:
        async with client(guarded, auth=TOKEN) as session:
            assert (await call(session, BEGIN)).task_id == "easy_mnist"

    run(scenario)


def test_clients_without_the_token_are_told(guarded: str) -> None:
    with pytest.raises(ConnectionError, match="401"):
        RemoteSession(guarded).begin("easy_mnist", 0)

    async def scenario() -> None:
        async with client(guarded, auth="wrong"):
            pass

    with pytest.raises(Exception, match="401"):
        run(scenario)


def test_the_token_is_never_printed() -> None:
    settings = Settings.from_environment({"ML_TRAINER_TOKEN": TOKEN})
    assert TOKEN not in repr(settings)
    assert TOKEN not in settings.model_dump_json()


# Origins -------------------------------------------------------------------------------------


def opens(url: str, origin: str | None, host: str | None = None) -> set[bool]:
    """Whether the MCP door and a WebSocket let this origin in."""
    headers = {"Origin": origin} if origin else {}
    answer = httpx.post(url + ADDRESS, json={}, headers=headers | ({"Host": host} if host else {}))
    over_http = answer.status_code != 403
    if host:
        return {over_http}
    try:
        with connect(f"ws{url[4:]}/ws", additional_headers=headers, proxy=None):
            return {over_http, True}
    except InvalidStatus as refused:
        answer = refused.response
    told = json.loads(answer.body)["detail"]
    return {over_http, answer.status_code != 403, "ML_TRAINER_ORIGINS" not in told}


@pytest.mark.parametrize(
    "origin",
    [None, "https://friend.example", "HTTPS://Friend.example/", "https://other.example:8443"],
)
def test_no_origin_and_listed_ones_may_come_in(open_to_all: str, origin: str | None) -> None:
    assert opens(open_to_all, origin) == {True}


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "http://friend.example", "null", "http://127.0.0.1"),
        *("https://friend.example.evil.example", "http://[::1", "https://other.example"),
    ],
)
def test_other_sites_may_not(open_to_all: str, origin: str) -> None:
    assert opens(open_to_all, origin) == {False}


def test_the_servers_own_pages_may(open_to_all: str) -> None:
    assert opens(open_to_all, open_to_all) == {True}
    port = open_to_all.rpartition(":")[2]
    assert opens(open_to_all, f"http://localhost:{port}", host=f"localhost:{port}") == {True}


def test_a_site_that_resolves_its_name_to_this_machine_may_not(open_to_all: str) -> None:
    assert opens(open_to_all, "http://evil.example", host="evil.example") == {False}


# Limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/reset", "/step", ADDRESS, "/web/step", "/no/such/path"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_that_is_too_long_is_refused(open_to_all: str, path: str, chunked: bool) -> None:
    body = b'{"x": "' + b"y" * MAX_BYTES + b'"}'
    content = iter([body[:1000], body[1000:]]) if chunked else body
    headers = {"content-type": "application/json"}
    answer = httpx.post(open_to_all + path, content=content, headers=headers)
    assert answer.status_code == 413
    assert f"at most {MAX_BYTES} bytes" in answer.json()["detail"]


def test_openenvs_mcp_door_refuses_it_in_its_own_way(open_to_all: str) -> None:
    answer = httpx.post(open_to_all + "/mcp", content=b"[" + b" " * MAX_BYTES + b"]")
    assert f"at most {MAX_BYTES} bytes" in answer.json()["error"]["message"]


# Errors --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken() -> Iterator[str]:
    with serving(build(partial(Broken, FakeRunner()), Settings())) as url:
        yield url


FAILED = {"detail": "the server failed; the reason is in its log"}
STEP = CallToolAction(tool_name="submit_model", arguments={}).model_dump()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/reset", {}),
        ("POST", "/step", {"action": STEP}),
        ("GET", "/metadata", None),
        ("GET", "/state", None),
        ("POST", "/ml_trainer_env/tasks", {"split": "train"}),
        ("POST", "/ml_trainer_env/num_tasks", {"split": "train"}),
    ],
)
def test_our_mistakes_are_told_without_details_over_http(
    broken: str, method: str, path: str, body: Any
) -> None:
    answer = httpx.request(method, broken + path, json=body)
    assert answer.status_code == 500
    assert answer.json() == FAILED


def test_and_over_json_rpc(broken: str) -> None:
    params = {"name": "submit_model", "arguments": {}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    answer = httpx.post(broken + "/mcp", json=request)
    assert "secret" not in answer.text
    assert "the server failed" in answer.json()["error"]["message"]


@pytest.mark.parametrize("message", [{"type": "reset"}, {"type": "step", "data": STEP}])
def test_and_over_a_websocket(broken: str, message: dict[str, Any]) -> None:
    with connect(f"ws{broken[4:]}/ws", proxy=None) as socket:
        socket.send(json.dumps(message))
        answer = socket.recv(timeout=10)
    assert json.loads(answer)["type"] == "error"
    assert "secret" not in str(answer)


def test_and_when_there_is_no_environment_at_all() -> None:
    made: list[MLTrainerEnvironment] = []

    def one_and_no_more() -> MLTrainerEnvironment:
        if made:  # the first is OpenEnv's own, to look at
            raise PermissionError(13, "Permission denied", "/srv/secret")
        made.append(MLTrainerEnvironment(FakeRunner()))
        return made[0]

    async def scenario() -> str:
        async with client(url) as session:
            return await refused(session, BEGIN)

    with serving(build(one_and_no_more, Settings())) as url:
        with connect(f"ws{url[4:]}/ws", proxy=None) as socket:
            answer = str(socket.recv(timeout=10))
        assert json.loads(answer)["type"] == "error"
        assert "secret" not in answer
        assert httpx.post(url + "/reset", json={}).json() == FAILED
        assert run(scenario) == FAILED["detail"]
