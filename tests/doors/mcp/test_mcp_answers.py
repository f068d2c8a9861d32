"""What a client of the standard MCP door accepts is what it gets, or an honest 406."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from fakes import FakeRunner
from hypothesis import given
from hypothesis import strategies as st
from live import serving
from mcp_play import HELLO, request

from ml_trainer_env.server.app import build
from ml_trainer_env.server.doors.mcp.answers import JSON, STREAM, quality
from ml_trainer_env.server.doors.mcp.door import ADDRESS
from ml_trainer_env.server.doors.mcp.visitor import BEGIN
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings

WELCOME = request(0, "initialize", **HELLO)
READS_STREAMS = [
    *(None, "", "*/*", "text/*", "*/*;q=0.1", "Text/Event-Stream", "application/json, */*"),
    "application/json;q=0.9, text/event-stream;q=0.5",
    *("text/html, application/xhtml+xml, */*;q=0.8", "application/json, text/event-stream"),
    *("text/event-stream", "text/event-stream ; charset=utf-8 ; q=1"),
]
READS_JSON = [
    *("application/json", "application/*", "application/*;q=0.3, text/html"),
    *("text/event-stream;q=0, */*", "text/*;q=0, */*", "application/json, text/event-stream;q=0.0"),
]
READS_NEITHER = [
    *("text/html", "image/*", "*/*;q=0", "application/json;q=0, text/event-stream;q=0"),
    *("application/xml, text/plain", "application/jsonp", "text/event-streams"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(build(partial(MLTrainerEnvironment, FakeRunner()), Settings())) as url:
        yield url


def ask(url: str, accept: str | None, message: Any, session: str | None = None) -> httpx.Response:
    with httpx.Client() as http:
        del http.headers["accept"]
        headers = {} if accept is None else {"accept": accept}
        if session:
            headers["mcp-session-id"] = session
        return http.post(url + ADDRESS, headers=headers, json=message)


def answer_in(response: httpx.Response) -> dict[str, Any]:
    if response.headers["content-type"].startswith(JSON):
        return response.json()
    (line,) = (line for line in response.text.splitlines() if '"id":' in line)
    return json.loads(line.removeprefix("data:"))


@pytest.mark.parametrize("accept", [*READS_STREAMS, *READS_JSON])
def test_an_episode_with_any_header_that_takes_an_answer(url: str, accept: str | None) -> None:
    welcome = ask(url, accept, WELCOME)
    form = JSON if accept in READS_JSON else STREAM
    assert welcome.headers["content-type"].startswith(form)
    assert answer_in(welcome)["result"]["serverInfo"]["name"] == "ml-trainer"
    session = welcome.headers["mcp-session-id"]
    begun = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert ask(url, accept, begun, session).status_code == 202
    calls = [
        (BEGIN, {}),
        ("configure_training", {}),
        ("run_epochs", {"num_epochs": 3}),
        ("run_epochs", {"num_epochs": -1}),
    ]
    for number, (name, arguments) in enumerate(calls, 1):
        meta = {"progressToken": "p"}
        call = request(number, "tools/call", name=name, arguments=arguments, _meta=meta)
        answered = ask(url, accept, call, session)
        assert answered.headers["content-type"].startswith(form)
        assert answer_in(answered)["id"] == number
        assert answer_in(answered)["result"]["isError"] == (number == 4)
        reported = answered.text.count("notifications/progress")
        assert reported == (3 if form == STREAM and number == 3 else 0)


@pytest.mark.parametrize("accept", READS_NEITHER)
def test_an_answer_that_would_not_be_read_is_refused(url: str, accept: str) -> None:
    refused = ask(url, accept, WELCOME)
    assert refused.status_code == 406
    assert f"{STREAM} or {JSON}" in refused.json()["error"]["message"]
    assert "mcp-session-id" not in refused.headers


@pytest.mark.parametrize("accept", [*READS_STREAMS, *READS_JSON, *READS_NEITHER])
def test_the_stream_of_notifications_is_one_form_only(url: str, accept: str | None) -> None:
    session = ask(url, "*/*", WELCOME).headers["mcp-session-id"]
    with httpx.Client() as http:
        del http.headers["accept"]
        headers = {"mcp-session-id": session} | ({} if accept is None else {"accept": accept})
        with http.stream("GET", url + ADDRESS, headers=headers) as answer:
            assert answer.status_code == (200 if accept in READS_STREAMS else 406)
            if answer.status_code == 406:
                assert STREAM in json.loads(answer.read())["error"]["message"]
                assert JSON not in json.loads(answer.content)["error"]["message"]


# The header --------------------------------------------------------------------------------------

RANGES = ["*/*", "text/*", "application/*", STREAM, JSON, "text/html", "", "nonsense", "*"]


@given(st.lists(st.tuples(st.sampled_from(RANGES), st.sampled_from([0.0, 0.25, 1.0]))))
def test_the_closest_range_decides_whatever_the_order(parts: list[tuple[str, float]]) -> None:
    header = ", ".join(f"{name};q={q}" for name, q in parts)
    first = dict(reversed(parts))
    closest = [first[name] for name in (STREAM, "text/*", "*/*") if name in first]
    assert quality(header, STREAM) == (closest[0] if closest else 0 if parts else 1)


@given(st.text())
def test_any_header_can_be_read(header: str) -> None:
    assert 0 <= quality(header, JSON) <= 1
