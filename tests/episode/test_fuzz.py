"""Fuzzing the doors: whatever comes in, no 5xx, no hang, an answer in JSON, and life goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
import schemathesis
from fakes import FakeRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from live import serving
from mcp_play import ByHand
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from wild import json_values

from ml_trainer_env.server.app import build
from ml_trainer_env.server.doors.mcp.door import ADDRESS
from ml_trainer_env.server.doors.mcp.visitor import BEGIN
from ml_trainer_env.server.episode.tools import TOOLS
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]  # some schemas are hard to break


def application() -> Any:
    return build(partial(MLTrainerEnvironment, FakeRunner()), Settings())


# The HTTP surface, as its OpenAPI document describes it ------------------------------------------


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_the_http_surface_never_fails(mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_asgi("/openapi.json", application())
    seen = set[int]()
    for documented in document.get_all_operations():
        assert isinstance(documented, Ok)
        operation = documented.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing about it can be wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=SLOW)
        def never_fails(case: schemathesis.Case) -> None:
            response = case.call()
            assert response.status_code < 500
            response.json()
            assert "Traceback" not in response.text
            seen.add(response.status_code)

        never_fails()
    assert seen >= {GenerationMode.POSITIVE: {200}, GenerationMode.NEGATIVE: {422}}[mode]


# The MCP door ------------------------------------------------------------------------------------

METHODS = [
    *("initialize", "ping", "tools/list", "tools/call", "resources/list", "resources/read"),
    *("resources/templates/list", "resources/subscribe", "prompts/list", "prompts/get"),
    *("completion/complete", "logging/setLevel", "tasks/get", "tasks/list", "tasks/result"),
    *("notifications/initialized", "notifications/cancelled", "notifications/progress"),
]


@pytest.fixture(scope="module")
def door() -> Iterator[ByHand]:
    with serving(application()) as url, ByHand(url) as door:
        yield door


def answered(response: httpx.Response) -> bool:
    return response.status_code < 500 and "Traceback" not in response.text


@pytest.mark.parametrize(
    "body",
    [
        *("", "{", "null", "5", "[]", '"x"', "NaN", "{}", '{"jsonrpc": "2.0"}', b"\xff\xfe\x00"),
        '[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]',
        '{"jsonrpc": "2.0", "id": NaN, "method": "ping"}',
        '{"jsonrpc": "2.0", "id": 1e999, "method": "ping"}',
        '{"jsonrpc": "2.0", "id": null, "method": "ping"}',
        '{"jsonrpc": "2.0", "id": 1, "method": "\\ud800"}',
        '{"jsonrpc": "2.0", "id": "' + "9" * 5_000 + '", "method": "ping"}',
        '{"jsonrpc": "2.0", "id": ' + "9" * 5_000 + ', "method": "ping"}',
        '{"jsonrpc": "2.0", "id": 1, "result": {}}',
        '{"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "no"}}',
        '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": '
        + '{"a":' * 600
        + "1}" * 600,
        *("[" * 60_000, '{"x": "' + "y" * 100_000 + '"}'),
    ],
    ids=lambda body: str(body)[:40],
)
def test_a_broken_message_is_answered_and_the_session_goes_on(
    door: ByHand, body: str | bytes
) -> None:
    assert answered(door.send(body))
    assert door.works()


@given(body=st.binary(max_size=200) | json_values.map(json.dumps))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_body_is_answered(door: ByHand, body: str | bytes) -> None:
    assert answered(door.send(body))
    assert door.works()


@given(
    method=st.sampled_from(METHODS) | st.text(max_size=20),
    params=json_values,
    request_id=json_values,
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_request_is_answered(door: ByHand, method: str, params: Any, request_id: Any) -> None:
    request = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    assert answered(door.send(json.dumps(request)))
    assert answered(door.ask(method, params))
    assert door.works()


@given(
    tool=st.sampled_from([BEGIN, *TOOLS]) | st.text(max_size=10),
    arguments=st.dictionaries(
        st.sampled_from(["task_id", "seed", "num_epochs", "new_lr", "enabled", "optimizer"])
        | st.text(max_size=8),
        json_values,
        max_size=4,
    )
    | json_values,
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_tool_call_is_answered(door: ByHand, tool: str, arguments: Any) -> None:
    assert answered(door.ask("tools/call", {"name": tool, "arguments": arguments}))
    assert door.works()


HEADER_NAMES = ["mcp-session-id", "mcp-protocol-version", "last-event-id", "accept", "content-type"]
header_values = st.sampled_from(
    ["", "*/*", "text/event-stream", "application/json", "2025-06-18", "1", "-1", "x" * 5_000]
) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)


@given(
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "OPTIONS", "HEAD", "DELETE"]),
    headers=st.dictionaries(st.sampled_from(HEADER_NAMES), header_values, max_size=4),
    body=st.sampled_from(["", '{"jsonrpc": "2.0", "id": "h", "method": "ping"}']),
)
@example("GET", {"accept": "text/event-stream", "last-event-id": "1"}, "")
@example("GET", {"accept": "text/event-stream", "mcp-protocol-version": "1"}, "")
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_headers_are_answered(
    door: ByHand, method: str, headers: dict[str, str], body: str
) -> None:
    if method == "DELETE":  # of any session but ours
        headers = {"mcp-session-id": "none", **headers}
    with door.http.stream(method, ADDRESS, headers=headers, content=body) as response:
        assert response.status_code < 500  # an event stream goes on for ever
    assert door.works()
