"""Asking a language model: the cap, retries, waits, and errors that end it in one line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest
from chats import ASKED, KEY, Clock, chat_with
from endpoint import Endpoint, call, choice, error, message, raw_endpoint
from live import free_port
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ml_trainer_env.agents.llm.chat import PATIENCE, EndpointError


def test_a_reply_is_text_and_calls() -> None:
    script = [message("hm", ("run_epochs", "{}"), ("submit_model", "{")), message("prose")]
    with Endpoint(*script).serving() as endpoint:
        chat = chat_with(endpoint.url, Clock())
        first, second = (chat.ask(ASKED, []) for _ in range(2))
    assert first.text == "hm"
    assert [(r.name, r.arguments) for r in first.requests] == [
        ("run_epochs", {}),
        ("submit_model", None),
    ]
    assert (second.text, second.requests) == ("prose", ())


def test_never_more_requests_in_a_minute_than_the_cap_retries_included() -> None:
    clock = Clock()
    arrivals: list[float] = []

    def note(body: dict[str, Any]) -> Any:
        arrivals.append(clock.seconds)
        fails = len(arrivals) % 3 == 0
        return error(429, "slow down", retry_after="1") if fails else None

    endpoint = Endpoint()
    endpoint.arrived = note
    with endpoint.serving():
        chat = chat_with(endpoint.url, clock, limit=5)
        for _ in range(14):
            chat.ask(ASKED, [])
    assert len(arrivals) == 20
    for first, sixth in zip(arrivals, arrivals[5:], strict=False):
        assert sixth - first > 60
    assert clock.seconds < 4 * 60  # and no slower than the cap asks for


def date_in(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def test_retry_after_is_honoured() -> None:
    clock = Clock()
    script = [error(429, "x", retry_after="7"), error(503, "x", retry_after="2.5")]
    with Endpoint(*script).serving() as endpoint:
        chat_with(endpoint.url, clock).ask(ASKED, [])
    assert clock.slept == [7, 2.5]


def test_retry_after_may_be_a_date() -> None:
    clock = Clock()
    with Endpoint(error(429, "x", retry_after=date_in(90))).serving() as endpoint:
        chat_with(endpoint.url, clock).ask(ASKED, [])
    assert 30 < clock.slept[0] <= 90
    clock = Clock()
    with Endpoint(error(429, "x", retry_after="soon")).serving() as endpoint:
        chat_with(endpoint.url, clock).ask(ASKED, [])
    assert clock.slept == [10]


def test_without_a_hint_the_waits_outlast_a_quota_of_a_minute() -> None:
    clock = Clock()
    with (
        Endpoint(otherwise=error(429, "quota exceeded")).serving() as endpoint,
        pytest.raises(EndpointError, match=r"429.*quota exceeded"),
    ):
        chat_with(endpoint.url, clock).ask(ASKED, [])
    assert len(endpoint.requests) == 4
    assert sum(clock.slept) > 60
    assert all(later > earlier for earlier, later in pairwise(clock.slept))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (error(401, "wrong key"), "401.*wrong key"),
        (error(404, "no such model"), "404.*no such model"),
        (error(429, "pay first", code="insufficient_quota"), "pay first"),
        (error(429, "come back", retry_after=f"{PATIENCE + 1}"), "come back"),
        (PlainTextResponse("<html>welcome</html>", media_type="text/html"), "API_BASE_URL"),
    ],
)
def test_what_waiting_cannot_cure_is_not_asked_twice(answer: Any, told: str) -> None:
    clock = Clock()
    with (
        Endpoint(otherwise=answer).serving() as endpoint,
        pytest.raises(EndpointError, match=told),
    ):
        chat_with(endpoint.url, clock).ask(ASKED, [])
    assert len(endpoint.requests) == 1
    assert clock.slept == []


def test_a_dead_endpoint_is_retried_and_named() -> None:
    clock = Clock()
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EndpointError, match=url):
        chat_with(url, clock).ask(ASKED, [])
    assert len(clock.slept) == 3


def test_what_is_sent() -> None:
    with Endpoint(call("submit_model")).serving() as endpoint:
        chat_with(endpoint.url, Clock()).ask(ASKED, [])
    [request] = endpoint.requests
    assert request["model"] == "gpt-4o-mini"
    assert request["tool_choice"] == "required"
    assert request["reasoning_effort"] == "minimal"
    assert json.dumps(request["messages"]) == json.dumps(ASKED)


# Errors in every shape ----------------------------------------------------------------------------

LIMITED = {"code": 429, "message": "slow down"}
GOOGLE = [{"error": {**LIMITED, "details": [{"retryDelay": "17s"}]}}]


@pytest.mark.parametrize(
    ("answer", "slept"),
    [
        (error(429, "x", retry_after_ms="300"), 0.3),
        (error(429, "x", x_ratelimit_reset_requests="6m0s"), 360),
        (error(429, "x", retry_after="nan"), 10),
        (error(429, "x", retry_after="inf"), 10),
        (error(429, "x", retry_after="-1"), 0),
        (JSONResponse(GOOGLE, 429), 17),
        (JSONResponse({"error": LIMITED}), 10),
        (JSONResponse({"error": LIMITED}, headers={"retry-after": "3"}), 3),
        (JSONResponse(GOOGLE), 17),
        (JSONResponse(choice(error={"code": 502, "message": "x"}, finish_reason="error")), 1),
        (JSONResponse({"choices": []}), 1),
        (b"", 1),
        (b'{"choices": [{"mess', 1),
        (b"upstream connect error", 1),
    ],
)
def test_what_may_pass_is_waited_for(answer: Any, slept: float) -> None:
    clock = Clock()
    with Endpoint(answer, call("submit_model")).serving() as endpoint:
        assert chat_with(endpoint.url, clock).ask(ASKED, []).requests
    assert clock.slept == [slept]


def test_waits_do_not_grow_without_an_end() -> None:
    clock = Clock()
    with (
        Endpoint(otherwise=error(429, "x")).serving() as endpoint,
        pytest.raises(EndpointError),
    ):
        chat_with(endpoint.url, clock, limit=10**6, retries=1100).ask(ASKED, [])
    assert max(clock.slept) == PATIENCE


def http(status: str, *headers: str, body: bytes = b"") -> bytes:
    """It says that its connection ends here, lest a client that asks again at once takes it."""
    lines = [f"HTTP/1.1 {status}", "connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


EMPTY = "content-length: 0"
RAW = {
    "nothing": b"",
    "another protocol": b"SSH-2.0-OpenSSH\r\n",
    "a body that is cut off": http("200 X", "content-length: 99", body=b"{"),
    "a chunk that is cut off": http("200 X", "transfer-encoding: chunked", body=b"9\r\n{"),
    "broken compression": http("200 X", "content-encoding: gzip", "content-length: 2", body=b"{}"),
    "a redirection to nowhere": http("302 X", "location: http://[::1", EMPTY),
    "an unknown status": http("999 X", EMPTY),
    **{
        f"text in {charset}": http(
            "500 X",
            f"content-type: text/plain; charset={charset}",
            "content-length: 2",
            body=b"\xff\xfe",
        )
        for charset in ("base64", "idna", "punycode", "utf-7", "none")
    },
}


@pytest.mark.parametrize("answer", RAW.values(), ids=RAW.keys())
def test_a_broken_server_ends_in_one_line(answer: bytes) -> None:
    clock = Clock()
    with raw_endpoint(answer) as url, pytest.raises(EndpointError) as raised:
        chat_with(url, clock, retries=1).ask(ASKED, [])
    assert str(raised.value).startswith(f"{url}: ")
    assert "\n" not in str(raised.value)
    assert len(clock.slept) == 1


@pytest.mark.parametrize(
    "told",
    [
        f"wrong key {KEY}, {KEY}",
        f"Bearer {KEY}\nand more",
        f"{'x' * 390} {KEY}",
        f"?key={quote(KEY, safe='')}",
        json.dumps({"key": KEY}),
    ],
)
@pytest.mark.parametrize("status", [200, 401, 500])
def test_the_key_is_never_told(told: str, status: int) -> None:
    for answer in (error(status, told), PlainTextResponse(told, status)):
        with (
            Endpoint(otherwise=answer).serving() as endpoint,
            pytest.raises(EndpointError) as raised,
        ):
            chat_with(endpoint.url, Clock(), retries=0).ask(ASKED, [])
        assert KEY[:9] not in f"{raised.value}"
        assert quote(KEY, safe="")[:9] not in f"{raised.value}"
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__


def test_what_an_endpoint_says_is_one_line_that_a_terminal_can_show() -> None:
    nasty = "bad\x1b[2J\r\nrequest\u202e \ud800" + "x" * 9999
    with (
        Endpoint(otherwise=Response(json.dumps({"error": nasty}), 401)).serving() as endpoint,
        pytest.raises(EndpointError, match=r"bad \[2J request") as raised,
    ):
        chat_with(endpoint.url, Clock()).ask(ASKED, [])
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) <= 400


@pytest.mark.parametrize(
    "told",
    [
        {"code": "tool_use_failed", "failed_generation": "I would train"},
        {"code": "content_filter", "message": "violence"},
    ],
)
def test_the_models_doing_is_a_reply_whatever_the_status(told: dict[str, str]) -> None:
    with Endpoint(otherwise=JSONResponse({"error": told}, 400)).serving() as endpoint:
        reply = chat_with(endpoint.url, Clock()).ask(ASKED, [])
    assert reply.requests == ()
    assert len(endpoint.requests) == 1
