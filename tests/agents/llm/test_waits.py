"""How long an endpoint asks to wait, in every form; nonsense is not waited for."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_trainer_env.agents.llm.waits import asked_to_wait, duration


def within(seconds: float) -> Any:
    """A moment that far ahead, give or take what the tests take."""
    return pytest.approx(seconds, abs=3600)


NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *((17, 17), (2.5, 2.5), ("17", 17), (" 2.5 ", 2.5), ("0", 0), ("-5", 0), (-5, 0)),
        *(("17s", 17), ("17.5s", 17.5), ("300ms", 0.3), ("6m0s", 360), ("1h2m3s", 3723)),
        *(("1d", 86400), ({"seconds": "17", "nanos": 5}, 17), ({"seconds": 2}, 2)),
        (format_datetime(NOW + timedelta(days=9), usegmt=True), within(9 * 86400)),
        ((NOW + timedelta(days=9)).isoformat(), within(9 * 86400)),
        (time.time() + 9 * 86400, within(9 * 86400)),
        (str(int(1000 * (time.time() + 9 * 86400))), within(9 * 86400)),
        (format_datetime(NOW - timedelta(days=9), usegmt=True), 0),
        *((nonsense, None) for nonsense in ("", "soon", "nan", "inf", "-inf", "1e999", "5 s", "s")),
        *((nonsense, None) for nonsense in (None, True, [], {}, [5], {"nanos": 5}, "Wed, 99 Oct")),
        *((nonsense, None) for nonsense in ("2026-01-01", "Wed, 01 Oct 99999 07:28:00 GMT")),
    ],
)
def test_a_duration(value: Any, seconds: Any) -> None:
    assert duration(value) == seconds


GOOGLE = {
    "error": {
        "code": 429,
        "details": [
            {"@type": "type.googleapis.com/google.rpc.Help", "links": []},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"},
        ],
    }
}
PASSED_ON = {"error": {"metadata": {"headers": {"X-RateLimit-Remaining": "0", "Retry-After": 9}}}}


@pytest.mark.parametrize(
    ("headers", "error", "seconds"),
    [
        ({"Retry-After": "7"}, None, 7),
        ({"retry-after-ms": "300"}, None, 0.3),
        ({"retry-after-ms": "300", "retry-after": "1"}, None, 0.3),
        ({"retry-after-ms": "nan", "retry-after": "1"}, None, 1),
        ({}, GOOGLE, 17),
        ({}, [GOOGLE], 17),
        ({}, PASSED_ON, 9),
        ({}, {"error": "loading", "estimated_time": 20.5}, 20.5),
        ({"retry-after": "soon"}, GOOGLE, 17),
        ({"x-ratelimit-reset": "1s"}, None, 1),
        ({"x-ratelimit-reset-requests": "6m0s"}, None, 360),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, None, 360),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "6m0s",
                "x-ratelimit-remaining-tokens": "9000",
            },
            None,
            1,
        ),
        ({"x-ratelimit-reset": str(time.time() + 9 * 86400)}, None, within(9 * 86400)),
        ({"x-ratelimit-reset": "0"}, None, None),
        ({}, {"error": {}}, None),
        ({}, None, None),
    ],
)
def test_where_it_is_said(headers: dict[str, str], error: Any, seconds: Any) -> None:
    assert asked_to_wait(429, headers, error) == seconds


def test_when_a_quota_is_renewed_matters_to_who_has_spent_it() -> None:
    assert asked_to_wait(503, {"x-ratelimit-reset": "60"}, None) is None
    assert asked_to_wait(503, {"retry-after": "60"}, None) == 60


@given(st.text() | st.floats() | st.integers() | st.lists(st.integers()) | st.none())
def test_it_is_never_negative_nor_a_number_that_is_none(value: Any) -> None:
    for error in ({"retry_after": value}, {"error": {"headers": {"retry-after": value}}}):
        wait = asked_to_wait(429, {"x-ratelimit-reset": str(value)}, error)
        assert wait is None or (wait >= 0 and not math.isnan(wait))
