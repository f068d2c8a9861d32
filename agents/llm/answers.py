"""What a model answered, read from the bytes of an endpoint, whatever shape they have.

Pure functions. An answer is untrusted input: providers, gateways and models write the same decision
in many ways. Guarantees: a call that can be understood is found; text comes out without lone
surrogates and control characters; arguments are a JSON object that can be sent on, or the reason
why they are not; all else is a `Fault`, and nothing else is raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from ml_trainer_env.agents.llm import event_streams, faults, values
from ml_trainer_env.agents.llm.calls import ToolRequest, called, in_text, listed
from ml_trainer_env.agents.llm.faults import Fault
from ml_trainer_env.agents.llm.values import Fields, clean

Stop = Literal["", "length", "filter", "refusal"]  # what kept the model from finishing

_STOPS: tuple[tuple[str, Stop], ...] = (
    ("length|max_?tokens|context_window", "length"),
    ("filter|safety|recitation|prohibited|blocklist|sensitive|spii|moderation|policy", "filter"),
    ("refusal", "refusal"),
)
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered; a call may stand in the text, too."""

    text: str
    requests: tuple[ToolRequest, ...] = ()
    stopped: Stop = ""

    def __str__(self) -> str:
        calls = [f"{request.name}({request.written})" for request in self.requests]
        said = "\n".join([*([self.text] if self.text else []), *calls]) or "(an empty reply)"
        return f"{said} [stopped: {self.stopped}]" if self.stopped else said

    @property
    def hindrance(self) -> str:
        """Why there is no call to carry out."""
        match self.stopped:
            case "length":
                return "the reply was cut off at the length limit, before it was a tool call"
            case "filter":
                return "the reply was withheld by the provider's filter, so it was not a tool call"
            case "refusal":
                return "the reply was a refusal and not a tool call"
            case "":
                what = "prose" if self.text else "empty"
                return f"the reply was {what} and not a tool call"


def read(body: bytes, headers: Mapping[str, str], tools: Collection[str]) -> Reply:
    """The model's answer in a body of status 200. `tools`: their names. Raises `Fault`."""
    answer = _value(body)
    if faults.is_error(answer):
        reply = in_error(answer, tools)
        if reply is None:
            raise faults.of_error(answer, headers)
        return reply
    outer: Fields = next(iter(values.objects(answer)), Fields())
    choice = next(iter(values.objects(outer.get("choices"))), None)
    if choice is None:
        return _without_choices(outer)
    reasons = (choice.get("finish_reason"), choice.get("native_finish_reason"))
    finish = next((reason for reason in reasons if isinstance(reason, str)), "")
    if choice.get("error") or finish == "error":
        raise faults.of_error(choice, headers)
    message = next((choice[key] for key in ("message", "delta") if key in choice), None)
    if (found := values.fields(message)) is not None:
        return _reply(found, finish, tools)
    if isinstance(choice.get("text"), str):
        return _reply({"content": choice["text"]}, finish, tools)
    raise Fault("an answer without a message")


def in_error(error: object, tools: Collection[str]) -> Reply | None:
    """The model's doing, which some providers tell as an error: a filter, or a call gone wrong."""
    for inner in values.all_objects(error):
        if isinstance(attempt := inner.get("failed_generation"), str):
            return Reply(clean(attempt), tuple(in_text(clean(attempt), tools)))
    names = " ".join(faults.names_in(error)).lower()
    if re.search("content_?filter|content_?policy|responsibleai", names):
        return Reply(clean(faults.words(error)), stopped="filter")
    return None


# Bodies ------------------------------------------------------------------------------------------


def _value(body: bytes) -> object:
    """The JSON value at the beginning of a body, or that of an event stream."""
    text = body.decode(json.detect_encoding(body), "replace").lstrip("\ufeff \t\r\n")
    if not text:
        raise Fault("an empty answer")
    if text.startswith("<"):
        page = f"a page and no chat completion (API_BASE_URL?): {faults.plain(text)}"
        raise Fault(page, may_pass=False)
    if event_streams.is_one(text):
        return event_streams.merged(text)
    try:
        return _DECODER.raw_decode(text)[0]
    except (ValueError, RecursionError):
        raise Fault(f"an answer that is not JSON, or not all of it: {text}") from None


def _without_choices(outer: Fields) -> Reply:
    if any(outer.get(name) for name in ("prompt_feedback", "promptFeedback")):
        return Reply("", stopped="filter")
    if "choices" in outer:
        raise Fault("an answer without a choice")
    raise Fault("the endpoint answers, but not with chat completions: API_BASE_URL?")


# Messages ----------------------------------------------------------------------------------------


def _reply(message: Fields, finish: str, tools: Collection[str]) -> Reply:
    parts = _parts(message.get("content"))
    text = clean("".join(part for part in parts if isinstance(part, str)))
    calls = (
        listed(message.get("tool_calls"))
        or listed(message.get("function_call"))
        or [part for part in parts if isinstance(part, dict)]
    )
    stopped = _stop(finish)
    requests = [called(call, tools, cut_off=stopped == "length") for call in calls]
    named = [request for request in requests if request.name]
    found = named or in_text(text, tools) or requests[:1]
    refusal = message.get("refusal")
    if not found and isinstance(refusal, str) and refusal:
        return Reply(text or clean(refusal), stopped="refusal")
    return Reply(text, tuple(found), stopped)


def _parts(content: object) -> list[str | Fields]:
    """The texts of a message's content, and the calls among them, in their order."""
    pieces = values.items(content) or [content]
    return [part for piece in pieces if (part := _part(piece))]


def _part(piece: object) -> str | Fields | None:
    found = values.fields(piece)
    if found is None:
        return None if piece is None else values.written(piece)
    kind = str(found.get("type", "")).lower()
    if "tool" in kind or "function" in kind:
        return found
    if "think" in kind or "reason" in kind:
        return None
    text = found.get("text", found.get("refusal"))
    text = (values.fields(text) or {}).get("value") or text
    if isinstance(text, str):
        return text
    return None if kind else values.written(found)


def _stop(finish: str) -> Stop:
    for name, stop in _STOPS:
        if re.search(name, finish.lower()):
            return stop
    return ""
