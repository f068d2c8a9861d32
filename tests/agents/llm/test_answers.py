"""A model's answer in any shape: what can be played is found, the rest is told for what it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from answers import TEXT, TOOLS, anything, completions
from endpoint import choice, message
from hypothesis import given
from hypothesis import strategies as st

from ml_trainer_env.agents.llm import answers as reading
from ml_trainer_env.agents.llm.answers import Reply
from ml_trainer_env.agents.llm.faults import Fault
from ml_trainer_env.agents.llm.values import LONGEST

ARGUMENTS = json.loads(TEXT)


def read(answer: Any) -> Reply:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return reading.read(body, {}, TOOLS)


def said(**fields: Any) -> dict[str, Any]:
    """A completion with this message."""
    return choice(message=fields)


def tool_calls(*calls: Any) -> dict[str, Any]:
    return said(content=None, tool_calls=list(calls))


def function(arguments: Any, name: Any = "run_epochs") -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def events(*chunks: Any, end: str = "data: [DONE]\n\n", line: str = "\n") -> bytes:
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end
    return text.replace("\n", line).encode()


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return choice(index=0, delta=fields, finish_reason=finish)


def pieces(*arguments: str, **more: Any) -> list[dict[str, Any]]:
    """Chunks of a call whose arguments come in these pieces."""
    first = {"index": 0, "id": "1", "function": {"name": "run_epochs", "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": piece}} for piece in arguments]
    return [delta(tool_calls=[call]) for call in (first, *rest)] + [delta("tool_calls")]


PLAYABLE = {
    "as documented": tool_calls(function(TEXT)),
    "an object": tool_calls(function(ARGUMENTS)),
    "encoded twice": tool_calls(function(json.dumps(TEXT))),
    "fenced": tool_calls(function(f"```json\n{TEXT}\n```")),
    "a list of chunks beside it": said(
        content=[{"type": "text", "text": "so"}, "be it"], tool_calls=[function(TEXT)]
    ),
    "not in a list": said(tool_calls=function(TEXT)),
    "by index": said(tool_calls={"0": function(TEXT)}),
    "the list in JSON": said(tool_calls=json.dumps([function(TEXT)])),
    "flattened": tool_calls({"name": "run_epochs", "arguments": ARGUMENTS}),
    "flattened, with parameters": tool_calls({"name": "run_epochs", "parameters": ARGUMENTS}),
    "the name as function": tool_calls({"function": "run_epochs", "arguments": TEXT}),
    "without type and id": tool_calls({"function": {"name": "run_epochs", "arguments": TEXT}}),
    "nulls around it": tool_calls(
        {"id": None, "type": None, "function": function(TEXT)["function"]}
    ),
    "among things that are none": tool_calls(None, "x", 3, {}, function(TEXT)),
    "legacy": said(content=None, function_call={"name": "run_epochs", "arguments": TEXT}),
    "legacy beside null": said(tool_calls=None, function_call=function(TEXT)["function"]),
    "custom": tool_calls({"type": "custom", "custom": {"name": "run_epochs", "input": TEXT}}),
    "tool_use": said(content=[{"type": "tool_use", "name": "run_epochs", "input": ARGUMENTS}]),
    "functionCall": tool_calls({"functionCall": {"name": "run_epochs", "args": ARGUMENTS}}),
    "a longer name": tool_calls(function(TEXT, "functions.run_epochs")),
    "a mark in the name": tool_calls(function(TEXT, "run_epochs<|channel|>commentary")),
    "a space in the name": tool_calls(function(TEXT, " run_epochs\n")),
    "no message but a delta": choice(delta={"tool_calls": [function(TEXT)]}),
    "a choice that is no list": {
        "choices": choice(message=said(tool_calls=[function(TEXT)]))["choices"][0]["message"][
            "choices"
        ][0]
    },
    "cut off, but whole": choice(finish_reason="length", message={"tool_calls": [function(TEXT)]}),
    "tagged": said(
        content=f'<tool_call>\n{{"name": "run_epochs", "arguments": {TEXT}}}\n</tool_call>'
    ),
    "in a fence": said(
        content=f'I say:\n```json\n{{"name": "run_epochs", "parameters": {TEXT}}}\n```'
    ),
    "bare": said(content=f'{{"name": "run_epochs", "arguments": {json.dumps(TEXT)}}}'),
    "bare, as a function": said(
        content=json.dumps(
            {"type": "function", "function": {"name": "run_epochs", "arguments": ARGUMENTS}}
        )
    ),
    "bare, by its name": said(content=json.dumps({"run_epochs": ARGUMENTS})),
    "bare, the whole message": said(content=json.dumps({"tool_calls": [function(TEXT)]})),
    "bare, as content": said(content={"name": "run_epochs", "arguments": ARGUMENTS}),
    "after thinking aloud": said(
        content='<think>{"name": "submit_model", "arguments": {}}?</think>'
        f'{{"name": "run_epochs", "arguments": {TEXT}}}'
    ),
    "in a list": said(content=f'[TOOL_CALLS][{{"name": "run_epochs", "arguments": {TEXT}}}]'),
    "a function tag": said(content=f"<function=run_epochs>{TEXT}</function>"),
    "a function tag without an end": said(content=f"<function=run_epochs{TEXT}</function>"),
    "as legacy text": choice(text=f'{{"name": "run_epochs", "arguments": {TEXT}}}'),
    "a call that failed there": {
        "error": {"code": "tool_use_failed", "failed_generation": f"<function=run_epochs>{TEXT}"}
    },
    "an error that is none": tool_calls(function(TEXT)) | {"error": None, "errors": []},
    "NaN beside it": json.dumps(tool_calls(function(TEXT)) | {"logprobs": float("nan")}).encode(),
    "with a mark of the encoding": b"\xef\xbb\xbf"
    + json.dumps(tool_calls(function(TEXT))).encode(),
    "in UTF-16": json.dumps(tool_calls(function(TEXT))).encode("utf-16"),
    "kept alive by white space": b"\n  \n" * 99 + json.dumps(tool_calls(function(TEXT))).encode(),
    "and something after it": json.dumps(tool_calls(function(TEXT))).encode() + b"\n\0{",
    "as events": events(*pieces('{"num_', 'epochs":', " 5}")),
    "as events, with CR LF": events(*pieces(TEXT), line="\r\n"),
    "as events, after a comment": b": PROCESSING\n\n" + events(*pieces(TEXT)),
    "as events without an end": events(*pieces(TEXT), end=""),
    "as one event": events(tool_calls(function(TEXT))),
    "as events without an index": events(
        delta(tool_calls=[{"function": {"name": "run_epochs", "arguments": '{"num_epochs"'}}]),
        delta("stop", tool_calls=[{"function": {"arguments": ": 5}"}}]),
    ),
    "as events, in the text": events(
        delta(content='{"name": "run_epochs",'), delta("stop", content=f' "arguments": {TEXT}}}')
    ),
}


@pytest.mark.parametrize("answer", PLAYABLE.values(), ids=PLAYABLE.keys())
def test_a_decision_that_can_be_played_is_found(answer: Any) -> None:
    request = read(answer).requests[0]
    assert (request.name, request.arguments, request.fault) == ("run_epochs", ARGUMENTS, "")


@pytest.mark.parametrize("nothing", [None, "", " ", "{}", {}, "null", '""', [], "[]"])
def test_no_arguments_are_an_empty_object(nothing: Any) -> None:
    [request] = read(tool_calls(function(nothing, "submit_model"))).requests
    assert (request.name, request.arguments) == ("submit_model", {})


@pytest.mark.parametrize(
    "arguments",
    [
        *("{", "[1]", "5", "true", "num_epochs=5", '"x"', [1], 5, True, float("nan")),
        *(
            '{"a": NaN}',
            '{"a": 1e999}',
            {"a": float("inf")},
            "[" * 999,
            '{"a":' * 300 + "1" + "}" * 300,
        ),
        *({"a": "x" * LONGEST}, "x" * 10 * LONGEST, '{"a": ' + "1" * 5000 + "}"),
    ],
    ids=lambda arguments: repr(arguments)[:20],
)
def test_arguments_that_are_no_json_object_are_told(arguments: Any) -> None:
    [request] = read(tool_calls(function(arguments))).requests
    assert request.name == "run_epochs"
    assert request.arguments is None
    assert request.fault


@pytest.mark.parametrize("arguments", [None, "", '{"num_ep'])
def test_a_call_that_was_cut_off_is_not_played(arguments: Any) -> None:
    answer = choice(finish_reason="length", message={"tool_calls": [function(arguments)]})
    [request] = read(answer).requests
    assert request.arguments is None
    assert "cut off at the length limit" in request.fault


@pytest.mark.parametrize(
    "call", [{}, {"type": "function"}, function(TEXT, None), function(TEXT, 5)]
)
def test_a_call_without_a_name_is_one(call: Any) -> None:
    [request] = read(tool_calls(call)).requests
    assert request.name == ""


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (said(content="I would train."), "prose"),
        (said(content=[{"type": "text", "text": "I would"}, " train."]), "prose"),
        (said(content='I would use {"name": "adam", "arguments": {}}.'), "prose"),
        (said(content='{"name": "run_epochs", "description": "x", "parameters": {}}'), "prose"),
        (said(content='<think>{"name": "submit_model"}'), "prose"),
        (said(content={"answer": 5}), "prose"),
        (said(content=5), "prose"),
        (said(content=None), "empty"),
        (said(), "empty"),
        (said(content="", tool_calls=[]), "empty"),
        (said(content=[{"type": "thinking", "thinking": "hm"}]), "empty"),
        (choice(finish_reason="length", message={"content": ""}), "cut off at the length limit"),
        (choice(finish_reason="length", message={"content": "I"}), "cut off at the length limit"),
        (choice(finish_reason="MAX_TOKENS", message={}), "cut off at the length limit"),
        (choice(finish_reason="model_length", message={}), "cut off at the length limit"),
        (choice(finish_reason="content_filter", message={"content": None}), "provider's filter"),
        (choice(finish_reason="SAFETY", message={"content": None}), "provider's filter"),
        ({"choices": [], "prompt_feedback": {"block_reason": "SAFETY"}}, "provider's filter"),
        ({"error": {"code": "content_filter", "message": "x"}}, "provider's filter"),
        (said(content=None, refusal="I can't."), "refusal"),
        ({"error": {"code": "tool_use_failed", "failed_generation": "I train"}}, "prose"),
        (events(delta(content="I"), delta("length", content="would")), "cut off at the length"),
    ],
)
def test_what_cannot_be_played_is_told_for_what_it_is(answer: Any, told: str) -> None:
    reply = read(answer)
    assert reply.requests == ()
    assert told in reply.hindrance


def test_the_text_of_chunks_is_put_together() -> None:
    answer = said(content=["a", {"type": "text", "text": "b"}, {"text": {"value": "c"}}, None])
    assert read(answer).text == "abc"


def test_lone_surrogates_and_control_characters_do_not_get_through() -> None:
    answer = said(
        content="\ud83d\x1b[31m \ud83d\ude00",
        tool_calls=[function({"\udc00": "\ud800"}), function('{"a": "\\ud800"}', "x\ud800")],
    )
    reply = read(answer)
    assert reply.text == "\ufffd [31m \U0001f600"
    assert json.dumps(str(reply)).encode()
    f"{reply}".encode()
    assert [request.arguments for request in reply.requests] == [{"?": "?"}, {"a": "?"}]


FAULTS: list[tuple[Any, int | None, str]] = [  # answer, what it means as a status, words
    ({"error": {"code": 429, "message": "slow down"}}, 429, "slow down"),
    ({"error": {"code": "429", "message": "slow down"}}, 429, "slow down"),
    ([{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "q"}}], 429, "q"),
    ({"error": {"status": "RESOURCE_EXHAUSTED"}}, 429, "RESOURCE_EXHAUSTED"),
    ({"error": {"code": "rate_limit_exceeded", "message": "m"}}, 429, "m"),
    ({"error": {"type": "rate_limit_error", "message": "m"}}, 429, "m"),
    ({"error": "Rate limit reached"}, 429, "Rate limit reached"),
    ({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, 503, "m"),
    ({"error": {"code": 401, "message": "no"}}, 401, "no"),
    ({"error": {"code": "invalid_api_key", "message": "no"}}, 401, "no"),
    ({"error": {"status": "INVALID_ARGUMENT", "message": "m"}}, 400, "m"),
    ({"error": {"message": "m", "type": "invalid_request_error"}}, 400, "m"),
    ({"error": {"message": "it broke"}}, 500, "it broke"),
    ({"error": {}, "message": "it broke"}, 500, "it broke"),
    ({"error": True}, 500, "true"),
    ({"errors": [{"code": 7003, "message": "route"}]}, 500, "route"),
    ({"object": "error", "message": "too long", "code": 400}, 400, "too long"),
    ({"status": 429, "title": "Too Many Requests"}, 429, "Too Many Requests"),
    ({"detail": "no model"}, 500, "no model"),
    ({"detail": [{"loc": ["body"], "msg": "wrong"}]}, 500, "wrong"),
    (choice(error={"code": 502, "message": "upstream"}, finish_reason="error"), 502, "upstream"),
    (choice(finish_reason="error", message={"content": "Sor"}), 500, "error"),
    (events(delta(content="a"), {"error": {"code": 502, "message": "gone"}}), 502, "gone"),
    ({"error": {"message": "Provider returned error", "metadata": {"raw": "why"}}}, 500, "why"),
    ({"choices": []}, None, "without a choice"),
    ({"choices": None}, None, "without a choice"),
    ({"choices": "x"}, None, "without a choice"),
    ({"choices": [None, 3]}, None, "without a choice"),
    (choice(), None, "without a message"),
    (choice(message=None), None, "without a message"),
    (choice(message="x"), None, "without a message"),
    ({}, None, "not with chat completions"),
    ([], None, "not with chat completions"),
    ("x", None, "not with chat completions"),
    (None, None, "not with chat completions"),
    ({"id": "x", "object": "list", "data": []}, None, "not with chat completions"),
    (b"", None, "an empty answer"),
    (b" \n", None, "an empty answer"),
    (b'{"choices": [{"mess', None, "not JSON"),
    (b"upstream connect error", None, "not JSON"),
    (b"[" * 100_000, None, "not JSON"),
    (b"\x00\xff\xfe", None, ""),
    (b"<!DOCTYPE html><title>Welcome</title>", None, "API_BASE_URL"),
    (events(delta(content="a"), end=""), None, "ends before"),
    (b"data: x\n\ndata: [DONE]\n\n", None, "ends before"),
    (b"event: ping\n\n", None, "ends before"),
]


@pytest.mark.parametrize(("answer", "status", "words"), FAULTS)
def test_what_is_no_answer_is_a_fault(answer: Any, status: int | None, words: str) -> None:
    with pytest.raises(Fault) as raised:
        read(answer)
    assert raised.value.status == status
    assert words in str(raised.value)
    passes = status in (None, 429, 500, 502, 503) and "API_BASE_URL?):" not in str(raised.value)
    assert raised.value.may_pass == passes


def test_a_spent_account_does_not_pass() -> None:
    with pytest.raises(Fault) as raised:
        read({"error": {"code": 429, "type": "insufficient_quota", "message": "pay"}})
    assert not raised.value.may_pass


# Anything at all ----------------------------------------------------------------------------------


def is_read_or_a_fault(body: bytes) -> None:
    try:
        reply = reading.read(body, {"retry-after": "x"}, TOOLS)
    except Fault:
        return
    json.dumps(reply.hindrance)
    str(reply).encode()
    for request in reply.requests:
        assert (request.arguments is None) == bool(request.fault)
        request.name.encode()
        json.dumps(request.arguments, allow_nan=False, ensure_ascii=False).encode()


@given(anything | completions)
def test_any_json_is_read_or_a_fault(value: Any) -> None:
    is_read_or_a_fault(json.dumps(value).encode())
    is_read_or_a_fault(events(value, value))


@given(st.binary(max_size=99))
def test_any_bytes_are_read_or_a_fault(body: bytes) -> None:
    is_read_or_a_fault(body)


@given(completions, st.data())
def test_any_part_of_an_answer_is_read_or_a_fault(value: Any, data: st.DataObject) -> None:
    body = json.dumps(value).encode()
    is_read_or_a_fault(body[: data.draw(st.integers(0, len(body)))])


@pytest.mark.parametrize(
    "text",
    [
        *("{" * 10**6, '{"a":' * 10**5, "<think>" * 10**5, "<function=x" * 10**5),
        *("```" + " " * 10**5, '{"name": "' * 10**5, "\\" * 10**6, "[{" * 10**5),
    ],
    ids=lambda text: text[:9],
)
def test_long_nonsense_is_read_at_once(text: str) -> None:
    is_read_or_a_fault(json.dumps(message(text, ("run_epochs", text))).encode())
    is_read_or_a_fault(text.encode())
    is_read_or_a_fault(json.dumps({"error": {"message": f"<script>{text}"}}).encode())
