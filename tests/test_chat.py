"""Asking a language model: the cap, retries, rejected options, and errors that end it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest
from endpoint import Endpoint, call, error, message
from live import free_port
from pyrate_limiter import Duration, InMemoryBucket, Rate
from starlette.responses import PlainTextResponse

from ml_trainer_env.agents.llm.chat import PATIENCE, Chat, EndpointError
from ml_trainer_env.agents.llm.settings import LLMSettings


class Clock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


class Bucket(InMemoryBucket):
    """A bucket that goes by `clock`."""

    def __init__(self, limit: int, clock: Clock) -> None:
        super().__init__([Rate(limit, Duration.MINUTE)])
        self._seconds = clock

    def now(self) -> int:
        return round(1000 * self._seconds.seconds)


def chat_with(endpoint_url: str, clock: Clock, limit: int = 1000, retries: int = 3) -> Chat:
    settings = LLMSettings(
        _env_file=None,  # pyright: ignore[reportCallIssue]
        api_base_url=endpoint_url,
        openai_api_key="a key",
        llm_max_retries=retries,
    )
    return Chat(settings, bucket=Bucket(limit, clock), sleep=clock.sleep)


ASKED: list[dict[str, str]] = [{"role": "user", "content": "what next?"}]


def test_a_reply_is_text_and_calls() -> None:
    script = [
        message("hm", ("run_epochs", "{}"), ("submit_model", "{")),
        message("prose"),
        message(None) | {"choices": []},
    ]
    with Endpoint(*script).serving() as endpoint:
        chat = chat_with(endpoint.url, Clock())
        first, second, third = (chat.ask(ASKED, []) for _ in range(3))
    assert first.text == "hm"
    assert [(r.name, r.arguments) for r in first.requests] == [
        ("run_epochs", "{}"),
        ("submit_model", "{"),
    ]
    assert (second.text, second.requests) == ("prose", ())
    assert (third.text, third.requests) == ("", ())


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


# Options that not every provider takes ------------------------------------------------------------


def rejecting(taken: dict[str, str | None], status: int, told: str = "unsupported: {}") -> Any:
    """A provider that takes just this value of each of these options; None: the option not at all.

    `told` is its error, about the name of the first one that it rejects.
    """

    def answer(body: dict[str, Any]) -> Any:
        wrong = [name for name, value in taken.items() if body.get(name, value) != value]
        return error(status, told.format(wrong[0])) if wrong else None

    return answer


@pytest.mark.parametrize("status", [400, 404, 422, 500])
@pytest.mark.parametrize(
    "taken",
    [
        {"reasoning_effort": None},
        {"tool_choice": "auto"},
        {"tool_choice": None},
        {"tool_choice": "auto", "reasoning_effort": None},
    ],
)
def test_a_rejected_option_is_met_once(taken: dict[str, str | None], status: int) -> None:
    endpoint = Endpoint()
    endpoint.arrived = rejecting(taken, status)
    with endpoint.serving():
        chat = chat_with(endpoint.url, Clock(), retries=0)
        assert all(chat.ask(ASKED, []).requests for _ in range(3))
    rejected = len(endpoint.requests) - 3
    assert rejected == len(taken) + ("tool_choice" in taken and taken["tool_choice"] is None)
    sent = {"tool_choice": "required", "reasoning_effort": "minimal"} | taken
    for request in endpoint.requests[-3:]:
        assert {name: request.get(name) for name in sent} == sent


@pytest.mark.parametrize("status", [400, 500])
def test_an_error_that_names_nothing_is_tried_without_each_option(status: int) -> None:
    endpoint = Endpoint()
    endpoint.arrived = rejecting({"tool_choice": "auto"}, status, "bad request")
    with endpoint.serving():
        assert chat_with(endpoint.url, Clock(), retries=0).ask(ASKED, []).requests
    assert len(endpoint.requests) == 2


def test_a_bad_request_that_is_not_about_options_ends_it() -> None:
    with (
        Endpoint(otherwise=error(400, "context too long")).serving() as endpoint,
        pytest.raises(EndpointError, match="context too long"),
    ):
        chat_with(endpoint.url, Clock()).ask(ASKED, [])
    assert len(endpoint.requests) == 4


def test_options_that_worked_once_are_not_suspected_again() -> None:
    endpoint = Endpoint(call("submit_model"), otherwise=error(500, "out of memory"))
    with endpoint.serving():
        chat = chat_with(endpoint.url, Clock(), retries=1)
        chat.ask(ASKED, [])
        with pytest.raises(EndpointError, match="out of memory"):
            chat.ask(ASKED, [])
    assert len(endpoint.requests) == 3
    assert all("tool_choice" in request for request in endpoint.requests)


def test_what_is_sent() -> None:
    with Endpoint(call("submit_model")).serving() as endpoint:
        chat_with(endpoint.url, Clock()).ask(ASKED, [])
    [request] = endpoint.requests
    assert request["model"] == "gpt-4o-mini"
    assert request["tool_choice"] == "required"
    assert request["reasoning_effort"] == "minimal"
    assert json.dumps(request["messages"]) == json.dumps(ASKED)
