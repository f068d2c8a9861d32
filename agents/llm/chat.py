"""Asking a language model, through the OpenAI client, whatever provider is behind it.

Guarantees:
- In any minute at most `llm_rpm_limit` requests leave, retries and every task of this `Chat`
  included.
- Retry-After is honoured. What cannot be cured by waiting ends in one `EndpointError`.
- An option that the provider rejects is left out from then on: the error is met once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from openai import APIConnectionError, APIError, APIStatusError, OpenAI
from openai.types.chat import ChatCompletion
from pyrate_limiter import Duration, InMemoryBucket, Limiter, Rate, SingleBucketFactory
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from ml_trainer_env.agents.llm.settings import LLMSettings
from ml_trainer_env.agents.session import Tool

TIMEOUT = 120.0  # seconds for one answer
PATIENCE = 600.0  # seconds; who asks for a longer wait is not asked again
POLL = 0.2  # seconds between two looks at the bucket
QUOTA_WAIT = 10.0  # seconds, doubled by each retry: after three a per-minute quota has passed
FAULT_WAIT = 1.0  # the same where the network or the server failed

Sleep = Callable[[float], None]
Message = dict[str, str]


class EndpointError(Exception):
    """The model cannot be asked; the message is for the user."""


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A call as the model wrote it: the arguments are text, and may be anything."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered."""

    text: str
    requests: tuple[ToolRequest, ...]

    def __str__(self) -> str:
        calls = [f"{request.name}({request.arguments})" for request in self.requests]
        return "\n".join([*([self.text] if self.text else []), *calls]) or "(an empty reply)"


class Chat:
    """One model at one endpoint. Any thread may ask; all of them share the cap."""

    def __init__(
        self,
        settings: LLMSettings,
        *,
        bucket: InMemoryBucket | None = None,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.model = settings.model
        self._endpoint = settings.base_url
        self._client = OpenAI(
            base_url=settings.base_url,
            api_key=settings.api_key,
            timeout=TIMEOUT,
            max_retries=0,  # its own retries would go past the cap
        )
        rate = Rate(settings.llm_rpm_limit, Duration.MINUTE)
        bucket = bucket or InMemoryBucket([rate])
        self._cap = Limiter(SingleBucketFactory(bucket, schedule_leak=False))  # or: a thread more
        self._sleep = sleep
        self._retrying = Retrying(
            stop=stop_after_attempt(settings.llm_max_retries + 1),
            retry=retry_if_exception(_may_pass),
            wait=_pause,
            sleep=sleep,
            reraise=True,
        )
        # What not every provider takes, in the order in which it is suspected, with the values to
        # try; then it is left out. llama.cpp's server shows no tools without a `tool_choice`.
        self._wanted = {
            "tool_choice": ("required", "auto"),
            "reasoning_effort": (settings.llm_reasoning_effort,),
        }
        self._rejected: set[tuple[str, str]] = set()
        self._proven = False  # whether what is left of them was taken once

    def ask(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Reply:
        """The model's answer. Raises `EndpointError`."""
        functions = [_function(tool) for tool in tools]
        while True:
            options = self._options()
            try:
                completion = self._retrying(self._request, messages, functions, options)
            except APIError as error:
                culprit = None if self._proven else _rejected_option(error, options)
                if culprit is None:
                    raise EndpointError(f"{self._endpoint}: {_told(error)}") from error
                self._rejected.add((culprit, options[culprit]))
            else:
                self._proven = True
                return _reply(completion)

    def _options(self) -> dict[str, str]:
        """Of each option the first value that was not rejected; an option may have none left."""
        return {
            name: value
            for name, values in self._wanted.items()
            for value in reversed(values)
            if (name, value) not in self._rejected
        }

    def _request(
        self, messages: Sequence[Message], functions: list[Any], options: dict[str, str]
    ) -> Any:
        while not self._cap.try_acquire(blocking=False):
            self._sleep(POLL)
        create: Callable[..., Any] = self._client.chat.completions.create
        return create(model=self.model, messages=list(messages), tools=functions, **options)


def _function(tool: Tool) -> dict[str, Any]:
    """A tool of the environment as the protocol's function."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.input_schema,
        },
    }


def _reply(completion: Any) -> Reply:
    if not isinstance(completion, ChatCompletion):
        raise EndpointError("the endpoint answers, but not with chat completions: API_BASE_URL?")
    if not completion.choices:  # seen when a provider filters or fails behind a status of 200
        return Reply("", ())
    message = completion.choices[0].message
    requests = [
        ToolRequest(call.function.name, call.function.arguments)
        for call in message.tool_calls or ()
        if call.type == "function"
    ]
    return Reply(message.content or "", tuple(requests))


# Errors -------------------------------------------------------------------------------------------


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, APIConnectionError):
        return True
    if not isinstance(error, APIStatusError) or error.code == "insufficient_quota":
        return False
    if (asked := _retry_after(error)) is not None and asked > PATIENCE:
        return False
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def _pause(state: RetryCallState) -> float:
    """Seconds until the next try: what the provider asks for, else twice as long each time."""
    error = state.outcome.exception() if state.outcome else None
    asked = _retry_after(error)
    if asked is not None:
        return asked
    limited = isinstance(error, APIStatusError) and error.status_code == 429
    return (QUOTA_WAIT if limited else FAULT_WAIT) * 2 ** (state.attempt_number - 1)


def _retry_after(error: BaseException | None) -> float | None:
    """Seconds that the provider asks to wait; the header has them, or a date."""
    value = error.response.headers.get("retry-after") if isinstance(error, APIStatusError) else None
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # neither, or a date without a zone
        return None


def _rejected_option(error: APIError, options: dict[str, str]) -> str | None:
    """Which of the options sent is at fault: one that is named, or else the first suspect.

    llama.cpp's server answers a `tool_choice` that it does not know with a bare 500.
    """
    if not isinstance(error, APIStatusError):
        return None
    text = f"{error.message} {error.body}"
    named = [name for name in options if name in text]
    if named:
        return named[0]
    suspicious = error.status_code in (400, 422) or error.status_code >= 500
    return next(iter(options), None) if suspicious else None


def _told(error: APIError) -> str:
    if isinstance(error, APIConnectionError):
        return f"{error.message} {error.__cause__ or ''}".strip()
    return error.message
