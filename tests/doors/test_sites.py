"""Pages of other sites: a listed one may ask and read at every HTTP door, any other may not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import httpx
import pytest
from fakes import FakeRunner
from guarded import HTTP_DOORS, TOKEN, Broken, bearer
from live import serving, with_page

from ml_trainer_env.server.doors.mcp.door import ADDRESS
from ml_trainer_env.server.doors.messages import MAX_BYTES
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings, SettingsError

FRIEND = "https://friend.example"
STRANGERS = ["https://evil.example", "http://friend.example", "null", "http://localhost:1"]
PATHS = sorted({path for _, path in HTTP_DOORS})
MCP_HEADERS = "authorization,content-type,last-event-id,mcp-protocol-version,mcp-session-id"


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """With the page, whose program has a policy of its own."""
    with ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setenv("ENABLE_WEB_INTERFACE", "true")
        environment = partial(MLTrainerEnvironment, FakeRunner())
        settings = Settings.from_environment(
            {"ML_TRAINER_TOKEN": TOKEN, "ML_TRAINER_ORIGINS": f"{FRIEND}:443/"}
        )
        yield stack.enter_context(serving(with_page(environment, settings)))


def preflight(url: str, path: str, origin: str, method: str = "POST") -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": MCP_HEADERS,
        "Access-Control-Request-Private-Network": "true",
    }
    return httpx.options(url + path, headers=asked)


def cors(answer: httpx.Response) -> dict[str, str]:
    return {name: text for name, text in answer.headers.items() if name.startswith("access-")}


@pytest.mark.parametrize("path", PATHS)
def test_a_preflight_of_a_listed_site_needs_no_token(guarded: str, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = preflight(guarded, path, FRIEND, method)
        assert answer.status_code == 200
        allowed = cors(answer)
        assert allowed["access-control-allow-origin"] == FRIEND
        assert method in allowed["access-control-allow-methods"].split(", ")
        assert allowed["access-control-allow-headers"] == MCP_HEADERS
        assert allowed["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize(("method", "path"), HTTP_DOORS)
@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_listed_site_reads_every_answer(guarded: str, method: str, path: str, token: str) -> None:
    headers = {"Origin": FRIEND} | (bearer(token) if token else {})
    answer = httpx.request(method, guarded + path, headers=headers)
    assert (answer.status_code == 401) == (not token)
    allowed = cors(answer)
    assert allowed["access-control-allow-origin"] == FRIEND
    assert "mcp-session-id" in allowed["access-control-expose-headers"].lower()
    assert "access-control-allow-credentials" not in allowed
    assert "Origin" in answer.headers["vary"]


def test_a_listed_site_reads_refusals_and_failures(guarded: str) -> None:
    headers = {"Origin": FRIEND} | bearer(TOKEN)
    too_long = httpx.post(guarded + "/reset", content=b"x" * 2 * MAX_BYTES, headers=headers)
    unreadable = httpx.post(guarded + ADDRESS, headers=headers | {"Accept": "text/html"}, json={})
    broken = partial(Broken, FakeRunner())
    with serving(with_page(broken, Settings(origins=(FRIEND,)))) as url:
        failed = httpx.post(url + "/reset", json={}, headers=headers)
    answers = [too_long, unreadable, failed]
    assert [answer.status_code for answer in answers] == [413, 406, 500]
    assert {cors(answer)["access-control-allow-origin"] for answer in answers} == {FRIEND}


@pytest.mark.parametrize("origin", STRANGERS)
@pytest.mark.parametrize("path", PATHS)
def test_no_other_site_is_allowed_anything(guarded: str, path: str, origin: str) -> None:
    assert cors(preflight(guarded, path, origin)) == {}
    for method in ("GET", "POST"):
        answer = httpx.request(method, guarded + path, headers={"Origin": origin} | bearer(TOKEN))
        assert cors(answer) == {}


@pytest.mark.parametrize("path", ["/mcp", ADDRESS])
def test_no_other_site_gets_an_answer_at_the_mcp_doors(guarded: str, path: str) -> None:
    headers = {"Origin": STRANGERS[0]} | bearer(TOKEN)
    refused = httpx.post(guarded + path, headers=headers, json={})
    assert refused.status_code == 403
    assert "ML_TRAINER_ORIGINS" in refused.json()["detail"]


@pytest.mark.parametrize(
    "origins",
    ["*", "friend.example", "https://friend.example/page", "https://", "https://a b", "null"],
)
def test_what_is_no_site_is_refused_as_a_setting(origins: str) -> None:
    with pytest.raises(SettingsError, match=r"ML_TRAINER_ORIGINS.*such as https://"):
        Settings.from_environment({"ML_TRAINER_ORIGINS": f"{FRIEND}, {origins}"})


@pytest.mark.parametrize(
    "origins", [f"{FRIEND},", "http://[::1]:3000", "chrome-extension://abcdef", "http://localhost"]
)
def test_sites_are(origins: str) -> None:
    assert Settings.from_environment({"ML_TRAINER_ORIGINS": origins}).origins
