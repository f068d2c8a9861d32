"""Broken messages at every door: an error in the door's own protocol, and the session goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes import FakeRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from live import serving
from websockets.sync.client import ClientConnection, connect
from wild import json_values

from ml_trainer_env.server.app import build
from ml_trainer_env.server.doors import messages
from ml_trainer_env.server.episode.tools import TOOLS
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.settings import Settings

# Over the wire ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    def environment() -> MLTrainerEnvironment:
        return MLTrainerEnvironment(FakeRunner())

    with serving(build(environment, Settings(max_sessions=4))) as url:
        yield url


def exchange(socket: ClientConnection, frame: str | bytes) -> dict[str, Any]:
    socket.send(frame)
    return json.loads(socket.recv(timeout=10))


DEEP = '{"a":' * 600 + "1" + "}" * 600
BROKEN_FRAMES: list[str | bytes] = [
    *("", "{", "hello", "null", "1", '"reset"', "[]", '[{"type": "reset"}]', "true", "NaN"),
    *("{}", '{"type": null}', '{"type": 7}', '{"type": ["step"]}', '{"type": "jump"}'),
    *('{"type": "step"}', '{"type": "step", "data": null}', '{"type": "step", "data": []}'),
    *('{"type": "step", "data": {}}', '{"type": "step", "data": {"type": "shell"}}'),
    '{"type": "step", "data": {"type": ["call_tool"], "tool_name": "run_epochs"}}',
    '{"type": "step", "data": {"type": "call_tool", "tool_name": 5}}',
    '{"type": "step", "data": {"type": "call_tool", "tool_name": "run_epochs", "arguments": []}}',
    '{"type": "step", "data": {"type": "call_tool", "tool_name": "a", "surplus": 1}}',
    '{"type": "step", "data": {"type": "call_tool", "tool_name": "\\ud800"}}',
    '{"type": "step", "data": {"type": "call_tool", "tool_name": "a", "arguments": {"x": NaN}}, '
    '"surplus": NaN}',
    *('{"type": "reset", "data": 5}', '{"type": "reset", "data": {"self": 1}}'),
    *('{"type": "reset", "data": {"seed": NaN}}', '{"type": "reset", "data": {"seed": 1e999}}'),
    *('{"type": "state", "data": {}}', '{"type": "mcp"}', '{"type": "close", "now": true}'),
    '{"type": "step", "data": {"type": "call_tool", "tool_name": "run_epochs", "arguments": '
    + DEEP
    + "}}",
    *(DEEP, "[" * 100_000, '{"n": ' + "9" * 5_000 + "}", '{"x": "' + "y" * 100_000 + '"}'),
    *(b"{}", b'{"type": "state"}', b"\x00\xff"),
]


def test_broken_frames_are_answered_and_the_session_goes_on(server: str) -> None:
    with connect(server.replace("http", "ws") + "/ws", proxy=None) as socket:
        exchange(socket, '{"type": "reset", "data": {"episode_id": "whole"}}')
        for frame in BROKEN_FRAMES:
            answer = exchange(socket, frame)
            assert answer["type"] == "error", frame[:80]
            assert answer["data"]["message"], frame[:80]
            assert len(json.dumps(answer)) < 3_000
            assert "Traceback" not in json.dumps(answer)
            state = exchange(socket, '{"type": "state"}')["data"]
            assert (state["episode_id"], state["step_count"]) == ("whole", 0), frame[:80]


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ("[1]", "a message must be a JSON object"),
        ('{"type": "jump"}', "type: must be one of reset, step, state, close, mcp"),
        ('{"type": "step"}', "data: is required; must be an object"),
        ('{"type": "step", "data": {"type": "go"}}', "data.type: must be one of call_tool"),
        ('{"type": "step", "data": {"tool_name": 5}}', "tool_name: must be a string; got 5"),
        ('{"type": "step", "data": {"tool_name": "a", "arguments": 5}}', "arguments: must be an"),
        (
            '{"type": "mcp", "data": {"jsonrpc": "2.0", "method": "m", "params": {"name": 5}}}',
            "name: must be a string",
        ),
    ],
)
def test_a_refused_frame_names_the_field(frame: str, said: str) -> None:
    answer = messages.openenv_refusal(frame)
    assert answer is not None
    assert said in json.loads(answer)["data"]["message"]


def test_nan_in_an_argument_names_the_argument(server: str) -> None:
    with connect(server.replace("http", "ws") + "/ws", proxy=None) as socket:
        exchange(socket, '{"type": "reset"}')
        step = {"tool_name": "configure_training", "arguments": {"learning_rate": math.nan}}
        answer = exchange(socket, json.dumps({"type": "step", "data": step}))
        error = answer["data"]["observation"]["error"]
        assert error["message"].startswith("learning_rate: must be a number with 0 <")
        assert answer["data"]["reward"] == 0


BROKEN_RPC: list[Any] = [
    *("", "{", "null", "[]", "5", "{}", DEEP, "[" * 100_000, "\ufeff{"),
    *({"jsonrpc": "1.0", "method": "tools/list"}, {"jsonrpc": "2.0"}),
    *({"method": 5}, {"method": "tools/fly"}, {"method": "tools/list", "params": []}),
    {"method": "tools/list", "params": {"session_id": ["x"]}},
    {"method": "openenv/session/close", "params": {"session_id": {}}},
    {"method": "openenv/session/close"},
    {"method": "tools/call", "params": {}},
    {"method": "tools/call", "params": {"name": 5}},
    {"method": "tools/call", "params": {"name": "run_epochs", "arguments": [5]}},
    {"method": "tools/call", "params": {"name": "run_epochs", "arguments": {"num_epochs": "5"}}},
    {"method": "tools/call", "params": {"name": "\ud800"}},
    {"method": "tools/call", "params": {"name": "x" * 100_000}},
]


@pytest.mark.parametrize("request_", BROKEN_RPC, ids=lambda value: str(value)[:40].encode())
def test_a_broken_json_rpc_request_gets_a_json_rpc_error(server: str, request_: Any) -> None:
    if isinstance(request_, dict):
        request_ = json.dumps({"jsonrpc": "2.0", "id": 1, **request_})
    response = httpx.post(server + "/mcp", content=request_)
    assert response.status_code == 200
    answer = response.json()
    assert answer["jsonrpc"] == "2.0"
    assert answer["error"]["message"]
    with connect(server.replace("http", "ws") + "/mcp", proxy=None) as socket:
        assert exchange(socket, request_)["error"]["message"]
        listed = exchange(socket, '{"jsonrpc": "2.0", "method": "tools/list", "id": 2}')
        assert len(listed["result"]["tools"]) == len(TOOLS)


@pytest.mark.parametrize(
    "body",
    [
        *("{", "[]", "5", "null", "NaN", '{"action": NaN}', '{"action": {"type": Infinity}}'),
        *('{"action": {"type": 1e999}}', '{"action": 5}', '{"action": {"type": "\\ud800"}}', DEEP),
        *('{"action": {"tool_name": 5}}', '{"seed": -1}', '{"seed": "x"}', '{"seed": NaN}'),
        *('{"task_id": 5}', '{"surplus": 1}', "x" * 100_000, b"\xff\xfe\x00"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("path", ["/reset", "/step"])
def test_a_broken_http_request_gets_a_4xx(server: str, path: str, body: str | bytes) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(server + path, content=body, headers=headers)
    assert 400 <= response.status_code < 500
    assert response.json()["detail"]


@given(text=st.text(max_size=200) | json_values.map(json.dumps))
@settings(max_examples=200, deadline=None)
def test_a_refusal_is_always_well_formed(text: str) -> None:
    for refusal in (messages.openenv_refusal, messages.rpc_refusal):
        answer = refusal(text)
        if answer is not None:
            assert isinstance(json.loads(answer.encode()), dict)


@given(frames=st.lists(json_values.map(json.dumps) | st.text(max_size=50), max_size=20))
@settings(max_examples=20, deadline=None)
def test_any_frames_leave_the_session_working(server: str, frames: list[str]) -> None:
    with connect(server.replace("http", "ws") + "/ws", proxy=None) as socket:
        exchange(socket, '{"type": "reset", "data": {"episode_id": "whole"}}')
        for frame in frames:
            assert exchange(socket, frame)["type"] == "error"
        assert exchange(socket, '{"type": "state"}')["data"]["episode_id"] == "whole"
