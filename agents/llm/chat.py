"""Asking a language model, through the OpenAI client, whatever provider is behind it.

Guarantees:
- In any minute at most `llm_rpm_limit` requests leave, retries and every task of this `Chat`
  included.
- The client carries bytes; what they mean is read here (`answers`, `faults`), in any shape.
- What is asked for is waited for. What cannot be cured by waiting ends in one `EndpointError`, one
  line without the key.
- What the provider does not take, of options or of schemas, is met once (`forms`).
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from openai import APIConnectionError, APIStatusError, DefaultHttpxClient, OpenAI
from pyrate_limiter import Duration, InMemoryBucket, Limiter, Rate, SingleBucketFactory
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from ml_trainer_env.agents.llm import answers, faults, values
from ml_trainer_env.agents.llm.answers import Reply
from ml_trainer_env.agents.llm.faults import Fault
from ml_trainer_env.agents.llm.forms import Form, Search
from ml_trainer_env.agents.llm.settings import LLMSettings
from ml_trainer_env.agents.llm.waits import LIMITED, PATIENCE
from ml_trainer_env.agents.session import Tool
from ml_trainer_env.surroundings import require_http_client
from ml_trainer_env.variables import SettingsError, is_sendable, one_line

TIMEOUT = 120.0  # seconds for one answer
POLL = 0.2  # seconds between two looks at the bucket
QUOTA_WAIT = 10.0  # seconds, doubled by each retry: after three a per-minute quota has passed
FAULT_WAIT = 1.0  # the same where the network or the server failed

# What not every provider takes, in the order in which it is suspected, with the values to try; then
# it is left out. llama.cpp's server shows no tools without a `tool_choice`.
TOOL_CHOICES = (("tool_choice", "required"), ("tool_choice", "auto"))

Sleep = Callable[[float], None]
Message = dict[str, str]


class EndpointError(Exception):
    """The model cannot be asked; the message is one line for the user."""


class Chat:
    """One model at one endpoint. Any thread may ask; all of them share the cap."""

    def __init__(
        self,
        settings: LLMSettings,
        *,
        bucket: InMemoryBucket | None = None,
        sleep: Sleep = time.sleep,
    ) -> None:
        """Raises `SettingsError` for variables that the client reads and cannot use."""
        self.model = settings.model
        self._endpoint, self._key = settings.base_url, settings.api_key
        self._client = _client(settings)
        rate = Rate(settings.llm_rpm_limit, Duration.MINUTE)
        bucket = bucket or InMemoryBucket([rate])
        self._cap = Limiter(SingleBucketFactory(bucket, schedule_leak=False))  # or: a thread more
        self._sleep = sleep
        self._tries = stop_after_attempt(settings.llm_max_retries + 1)
        self._form = Form((*TOOL_CHOICES, ("reasoning_effort", settings.llm_reasoning_effort)))
        self._proven = False  # whether the options of the form were taken once
        self._proven_tools: set[str] = set()  # with which tools the schemas were

    def ask(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Reply:
        """The model's answer. Raises `EndpointError`."""
        names = {tool.name for tool in tools}
        unproven = bool(names - self._proven_tools)
        search = Search(self._form, options=not self._proven, schemas=unproven)
        while True:
            try:
                reply = self._answer(search, messages, tools)
            except Fault as fault:
                if search.go_on(fault):
                    continue
                told = f"{self._endpoint}: {search.fault}"
                raise EndpointError(one_line(told, self._key)) from None
            self._form, self._proven = search.form, True
            self._proven_tools |= names
            return reply

    def _answer(self, search: Search, messages: Sequence[Message], tools: Sequence[Tool]) -> Reply:
        """Of one form of the request, repeated as long as it may help. Raises `Fault`.

        A guess is not repeated for a server that failed: this is what it is to cure.
        """

        def may_help(fault: BaseException) -> bool:
            if not isinstance(fault, Fault) or (search.guessing and (fault.status or 0) >= 500):
                return False
            return fault.may_pass

        retrying = Retrying(
            stop=self._tries,
            retry=retry_if_exception(may_help),
            wait=_pause,
            sleep=self._sleep,
            reraise=True,
        )
        request = search.form.request(tools)
        return retrying(self._request, messages, request, [tool.name for tool in tools])

    def _request(
        self, messages: Sequence[Message], request: dict[str, Any], tools: Sequence[str]
    ) -> Reply:
        while not self._cap.try_acquire(blocking=False):
            self._sleep(POLL)
        create: Callable[..., Any] = self._client.chat.completions.with_raw_response.create
        try:
            response = create(model=self.model, messages=list(messages), **request)
            return answers.read(response.content, response.headers, tools)
        except APIStatusError as error:
            response = error.response
            said = values.parsed(response.content.decode("utf-8", "replace"))
            reply = answers.in_error(said, tools)
            if reply is None:
                raise faults.of_response(
                    response.status_code, response.headers, response.content
                ) from None
            return reply
        except APIConnectionError as error:
            raise Fault(f"{error.message} {error.__cause__ or ''}") from None


def _client(settings: LLMSettings) -> OpenAI:
    """Raises `SettingsError`."""
    for variable in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"):
        if not all(map(is_sendable, os.environ.get(variable, "").split("\n"))):
            raise SettingsError(f"{variable}: has a character that no header can carry")
    require_http_client()
    carrier = DefaultHttpxClient(event_hooks={"response": [_forget_charset]})
    try:
        client = OpenAI(
            base_url=settings.base_url,
            api_key=settings.api_key,
            timeout=TIMEOUT,
            max_retries=0,  # its own retries would go past the cap
            http_client=carrier,
        )
    except Exception:  # of all that it reads, this alone was not tried before
        raise SettingsError("API_BASE_URL: is not a URL that can be asked") from None
    weakref.finalize(client, carrier.close)  # its connections end with it
    return client


def _forget_charset(response: Any) -> None:
    """The client would decode an error by it, and fail for one that it does not know."""
    response.headers.pop("content-type", None)


def _pause(state: RetryCallState) -> float:
    """Seconds until the next try: what the provider asks for, else twice as long each time."""
    fault = state.outcome.exception() if state.outcome else None
    assert isinstance(fault, Fault)
    if fault.wait is not None:
        return fault.wait
    first = QUOTA_WAIT if fault.status == LIMITED else FAULT_WAIT
    return min(PATIENCE, first * 2.0 ** min(state.attempt_number - 1, 30))
