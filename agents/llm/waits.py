"""How long an endpoint asks to wait: in headers and in errors, in every form that is in use.

Pure functions that raise nothing; what makes no sense counts as not said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from ml_trainer_env.agents.llm import values

PATIENCE = 600.0  # seconds; who asks for a longer wait is not asked again
LIMITED = 429  # HTTP's status for too many requests

_NAMES = ("retryDelay", "retry_delay", "retry_after", "retryAfter", "estimated_time")
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|ns|d|h|m|s)")
_RESET = re.compile(r"(?:x-)?ratelimit-reset.*|.*ratelimit-.*-reset")


def asked_to_wait(status: int, headers: Mapping[str, str], error: object) -> float | None:
    """Seconds; None where nothing is said."""
    given = {name.lower(): value for name, value in headers.items()}
    within = list(values.all_objects(error))
    for passed_on in (values.fields(each.get("headers")) for each in within):  # by a gateway
        given |= {name.lower(): values.written(value) for name, value in (passed_on or {}).items()}
    milliseconds = _number(given.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    waits = [each[name] for each in within for name in _NAMES if name in each]
    for wait in (given.get("retry-after"), *waits):
        if (seconds := duration(wait)) is not None:
            return seconds
    return _reset(given) if status == LIMITED else None


def duration(value: object) -> float | None:
    """Seconds: of a number, of `6m0s`, of protobuf's object, until a date or a moment."""
    if (protobuf := values.fields(value)) is not None:
        value = protobuf.get("seconds")
    text = values.written(value).strip()
    now = datetime.now(UTC)
    seconds = _number(text)
    if seconds is not None and seconds > 1e9:  # a moment, in seconds or in milliseconds
        return max(0.0, (seconds / 1000 if seconds > 1e11 else seconds) - now.timestamp())
    if seconds is not None:
        return seconds
    if text and not _PART.sub("", text):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        with suppress(ValueError, TypeError, OverflowError):  # no date, or one without a zone
            return max(0.0, (read(text) - now).total_seconds())
    return None


def _number(text: str) -> float | None:
    with suppress(ValueError):
        number = float(text)
        if math.isfinite(number):
            return max(0.0, number)
    return None


def _reset(headers: Mapping[str, str]) -> float | None:
    """Until the quotas that are used up are renewed; where none is said to be, until all are."""
    resets = {
        name: seconds
        for name, value in headers.items()
        if _RESET.fullmatch(name) and (seconds := duration(value))
    }
    remaining = {name: headers.get(name.replace("reset", "remaining")) for name in resets}
    used_up = [seconds for name, seconds in resets.items() if remaining[name] == "0"]
    return max(used_up or resets.values(), default=None)
