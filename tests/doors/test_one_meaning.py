"""One meaning at every door: what the published schemas allow is taken, and nothing else.

The same arguments go through every door, and each has to answer what the schema says, in the same
words. JSON has one kind of numbers, so 5, 5.0 and 5e0 are the same whole number; "5" and true are
none. A null for an optional field means that it was left out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import pytest
from fakes import FakeRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from live import serving
from mcp_play import ByHand
from openenv.core.env_server.mcp_types import CallToolAction
from websockets.sync.client import ClientConnection, connect

from ml_trainer_env.models import MAX_SEED
from ml_trainer_env.server.app import build
from ml_trainer_env.server.desk.seats import Seat
from ml_trainer_env.server.doors import messages
from ml_trainer_env.server.doors.mcp.visitor import BEGIN, BeginEpisode
from ml_trainer_env.server.episode.tools import TOOLS
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session.reset_options import ResetOptions
from ml_trainer_env.server.settings import Settings
from ml_trainer_env.server.validation import (
    ActionError,
    InvalidArguments,
    json_schema,
    validate,
)
from ml_trainer_env.task_ids import listed

NO_EPISODE = "no episode has begun"
Door = Callable[[str, dict[str, Any]], str | None]  # a tool's error, or None


def environment() -> MLTrainerEnvironment:
    return MLTrainerEnvironment(FakeRunner())


class Doors:
    """All of them: of one server, and in process."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.http = stack.enter_context(httpx.Client(base_url=url, timeout=10))
        self.socket = stack.enter_context(self._socket(url, "/ws"))
        self.rpc_socket = stack.enter_context(self._socket(url, "/mcp"))
        self.standard, self.beginner = (stack.enter_context(ByHand(url)) for _ in range(2))
        self.environment = environment()
        self.document = self.http.get("/openapi.json").json()["components"]["schemas"]
        self.calls: dict[str, Door] = {
            "step over a WebSocket": self._step,
            "step over HTTP": self._http_step,
            "/mcp over HTTP": self._http_rpc,
            "/mcp over a WebSocket": self._socket_rpc,
            "/play/mcp": partial(self._standard, self.standard),
            "in process": self._in_process,
            "the desk": self._desk,
        }

    @staticmethod
    def _socket(url: str, path: str) -> ClientConnection:
        return connect(url.replace("http", "ws") + path, proxy=None)

    def ask(self, message: str) -> dict[str, Any]:
        self.socket.send(message)
        return json.loads(self.socket.recv(timeout=10))["data"]

    def _step(self, tool: str, arguments: dict[str, Any]) -> str | None:
        data = {"tool_name": tool, "arguments": arguments}
        error = self.ask(json.dumps({"type": "step", "data": data}))["observation"]["error"]
        return error and error["message"]

    def _http_step(self, tool: str, arguments: dict[str, Any]) -> str | None:
        body = {"action": {"tool_name": tool, "arguments": arguments}}
        error = self.http.post("/step", json=body).json()["observation"]["error"]
        return error and error["message"]

    def _rpc(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        params = {"name": tool, "arguments": arguments}
        return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}

    def _http_rpc(self, tool: str, arguments: dict[str, Any]) -> str | None:
        answer = self.http.post("/mcp", json=self._rpc(tool, arguments)).json()
        return answer["error"]["message"] if "error" in answer else None

    def _socket_rpc(self, tool: str, arguments: dict[str, Any]) -> str | None:
        self.rpc_socket.send(json.dumps(self._rpc(tool, arguments)))
        answer = json.loads(self.rpc_socket.recv(timeout=10))
        return answer["error"]["message"] if "error" in answer else None

    def begin(self, arguments: dict[str, Any]) -> str | None:
        return self._standard(self.beginner, BEGIN, arguments)

    def _standard(self, door: ByHand, tool: str, arguments: dict[str, Any]) -> str | None:
        text = door.ask("tools/call", {"name": tool, "arguments": arguments}).text
        [data] = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        result = json.loads(data)["result"]
        return result["content"][0]["text"] if result["isError"] else None

    def _in_process(self, tool: str, arguments: dict[str, Any]) -> str | None:
        action = CallToolAction(tool_name=tool, arguments=arguments)
        error = getattr(self.environment.step(action), "error", None)
        return error and error.message

    def _desk(self, tool: str, arguments: dict[str, Any]) -> str | None:
        try:
            asyncio.run(Seat(self.environment).call(tool, arguments))
        except ActionError as error:
            return str(error)
        return None


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with ExitStack() as stack:
        server = build(partial(MLTrainerEnvironment, FakeRunner()), Settings())
        yield Doors(stack.enter_context(serving(server)), stack)


# Values -------------------------------------------------------------------------------------------

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda children: (
        st.lists(children, max_size=2) | st.dictionaries(st.text(max_size=4), children)
    ),
    max_leaves=3,
)


def written(value: float) -> list[Any]:
    """A number in several ways, the wrong ones included."""
    return [value, float(value), str(value), value + 0.5, bool(value), [value], None]


def near(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values on both sides of what a field's schema allows."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    choices: list[Any] = [None, True, False, "", "x" * 256]
    for kind in kinds:
        choices += kind.get("enum", []) + [kind[key] for key in ("const", "default") if key in kind]
        low = kind.get("minimum", kind.get("exclusiveMinimum", 0))
        high = kind.get("maximum", low + 1)
        choices += [low - 1, low, (low + high) / 2, (low + high) // 2, high, high + 1]
    numbers = [each for each in choices if type(each) in (int, float)]
    return st.sampled_from(choices + [way for each in numbers for way in written(each)]) | anything


def objects(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments that are often valid, and often wrong in one of them."""
    fields = {name: near(each) for name, each in schema["properties"].items()}
    some = st.fixed_dictionaries({}, optional=fields)
    few = st.lists(st.sampled_from([*fields, "surplus"]), max_size=2, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({n: fields.get(n, anything) for n in names})
    )
    return few | some


def is_valid(schema: dict[str, Any], values: dict[str, Any]) -> bool:
    """By the published schema, once nulls for optional fields are left out."""
    required = schema.get("required", [])
    meant = {k: v for k, v in values.items() if v is not None or k in required}
    if not set(meant) <= set(schema["properties"]) or set(values) - set(schema["properties"]):
        return False
    return Draft202012Validator(schema).is_valid(meant)


# Tools --------------------------------------------------------------------------------------------


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_a_tool_takes_at_every_door_what_its_schema_allows(
    doors: Doors, data: st.DataObject
) -> None:
    tool = data.draw(st.sampled_from(list(TOOLS)))
    schema = TOOLS[tool].input_schema
    arguments = data.draw(objects(schema))
    refusal = None
    try:
        validate(TOOLS[tool].arguments, arguments, subject=tool)
    except InvalidArguments as error:
        refusal = str(error)
    assert (refusal is None) == is_valid(schema, arguments)
    for name, door in doors.calls.items():
        answer = door(tool, arguments)
        if refusal is None:  # none of them has an episode
            assert answer is not None, name
            assert answer.startswith(NO_EPISODE), name
        else:
            assert answer == refusal, name


def step(tool: str, arguments: str) -> str:
    data = f'{{"tool_name": "{tool}", "arguments": {arguments}}}'
    return f'{{"type": "step", "data": {data}}}'


@pytest.mark.parametrize("five", ["5", "5.0", "5e0", "0.5e1", "50E-1"])
def test_a_number_means_the_same_however_it_is_written(doors: Doors, five: str) -> None:
    options = f'{{"seed": {five}}}'
    doors.ask(f'{{"type": "reset", "data": {options}}}')
    assert doors.ask('{"type": "state"}')["seed"] == 5
    answer = doors.ask(step("configure_training", f'{{"warmup_epochs": {five}}}'))
    config = answer["observation"]["result"]["data"]["current_config"]
    assert json.dumps(config["warmup_epochs"]) == "5"
    answer = doors.ask(step("run_epochs", f'{{"num_epochs": {five}}}'))
    assert answer["observation"]["result"]["data"]["epochs_run"] == 5
    headers = {"content-type": "application/json"}
    assert doors.http.post("/reset", content=options, headers=headers).status_code == 200


# Reset --------------------------------------------------------------------------------------------

RESET = json_schema(ResetOptions)
ALONE = ("seed", "episode_id", "task_id")  # the others go with or without one another


def reset_refusals(doors: Doors, options: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """What each door of reset says against `options`."""
    answer = doors.http.post("/reset", json=options)
    yield "HTTP", None if answer.status_code == 200 else answer.json()["detail"]
    told = doors.ask(json.dumps({"type": "reset", "data": options}))
    yield "WebSocket", None if "observation" in told else told["message"]
    doors.ask('{"type": "reset"}')  # so that an id is free again
    alone = environment()
    try:
        alone.reset(**options)
    except ActionError as error:
        yield "in process", str(error)
    else:
        yield "in process", None
    finally:
        alone.close()


@given(options=objects({"properties": {name: RESET["properties"][name] for name in ALONE}}))
@settings(max_examples=120, deadline=None)
def test_reset_takes_at_every_door_what_its_schema_allows(
    doors: Doors, options: dict[str, Any]
) -> None:
    valid = is_valid(RESET, options)
    assert doors.document["ResetRequest"] == RESET
    refusals = dict(reset_refusals(doors, options))
    assert len(set(refusals.values())) == 1, refusals
    assert all((refusal is None) == valid for refusal in refusals.values()), refusals


@given(options=objects(json_schema(BeginEpisode)))
@settings(max_examples=60, deadline=None)
def test_an_episode_begins_at_the_standard_door_as_at_the_others(
    doors: Doors, options: dict[str, Any]
) -> None:
    answer = doors.begin(options)
    assert (answer is None) == is_valid(json_schema(BeginEpisode), options)
    if len(options) == 1 and not options.keys() - {"seed", "task_id"}:
        assert set(dict(reset_refusals(doors, options)).values()) == {answer}


LAST = len(listed("train")) - 1


@pytest.mark.parametrize("index", [0, 2.0, LAST, LAST + 1, 1.5, "1", True, -1])
def test_an_index_means_the_same_at_every_door(doors: Doors, index: object) -> None:
    refusals = dict(reset_refusals(doors, {"split": "train", "index": index}))
    assert len(set(refusals.values())) == 1
    assert (refusals["HTTP"] is None) == (index in (0, 2.0, LAST) and index is not True)


# The envelopes ------------------------------------------------------------------------------------

ACTION = {"tool_name": "submit_model"}
ENVELOPES: list[tuple[str, dict[str, Any], str]] = [
    ("/step", {"action": ACTION, "timeout_s": "3"}, "timeout_s: must be a number with 0 < timeout"),
    ("/step", {"action": ACTION, "timeout_s": True}, "timeout_s: must be a number with"),
    ("/step", {"action": ACTION, "timeout_s": 0}, "timeout_s: must be a number with"),
    ("/step", {"action": ACTION, "request_id": 5}, "request_id: must be a string of 0 to 255"),
    ("/step", {"action": ACTION, "timeout": 3}, '"timeout": unknown; a step takes action'),
    ("/step", {"action": None}, "action: must be an object; got null"),
    ("/step", {}, "action: is required"),
    ("/step", {"action": {"tool_name": 5}}, "tool_name: must be a string; got 5"),
    ("/step", {"action": {"tool_name": "a", "arguments": None}}, "arguments: must be an object"),
    ("/step", {"action": {"type": "go"}}, "action.type: must be one of call_tool, list_tools"),
    ("/step", {"action": {"type": None, **ACTION}}, "action.type: must be one of"),
    ("/reset", {"seed": "3"}, "seed: must be a whole number with 0 <= seed"),
    ("/reset", {"seed": True}, "seed: must be a whole number with 0 <= seed"),
    ("/reset", {"seed": MAX_SEED + 1}, "seed: must be a whole number"),
    ("/reset", {"episode_id": 5}, "episode_id: must be a string"),
    ("/ml_trainer_env/task", {"split": "train", "index": "1"}, "index: must be a whole number"),
    ("/ml_trainer_env/task", {"split": "train", "index": True}, "index: must be a whole number"),
    ("/ML_TRAINER_ENV/task_range", {"split": "train", "stop": "1"}, "stop: must be a whole"),
    ("/ml_trainer_env/num_tasks", {"split": 5}, "split: must be a string"),
]


@pytest.mark.parametrize(("path", "body", "said"), ENVELOPES, ids=str)
def test_nothing_is_made_of_what_was_sent(
    doors: Doors, path: str, body: dict[str, Any], said: str
) -> None:
    answer = doors.http.post(path, json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(said)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/step", {"action": ACTION, "timeout_s": 3, "request_id": "a"}),
        ("/step", {"action": ACTION, "timeout_s": 3.5, "request_id": None}),
        ("/step", {"action": {"type": "list_tools"}}),
        ("/step", {"action": {"type": "call_tool", "tool_name": "submit_model", "metadata": {}}}),
        ("/reset", {"seed": None, "episode_id": None}),
        ("/ml_trainer_env/task", {"split": "train", "index": 1.0}),
        ("/ml_trainer_env/task_range", {"split": "train", "start": None, "stop": 2.0}),
    ],
)
def test_what_the_document_allows_is_taken(doors: Doors, path: str, body: dict[str, Any]) -> None:
    assert doors.http.post(path, json=body).status_code == 200
    if path == "/step":
        assert Draft202012Validator(doors.document["StepRequest"]).is_valid(body)


@given(body=objects({"properties": {"timeout_s": {"type": "number"}, "request_id": {}}}))
@settings(max_examples=60, deadline=None)
def test_a_step_is_taken_as_the_document_says(doors: Doors, body: dict[str, Any]) -> None:
    sent = {"action": ACTION, **body}
    valid = Draft202012Validator(doors.document["StepRequest"]).is_valid(sent)
    assert doors.http.post("/step", json=sent).status_code == (200 if valid else 422)


@pytest.mark.parametrize(
    "envelope",
    [
        {"type": "reset", "data": None},
        {"type": "step", "data": {"tool_name": "submit_model", "arguments": None}},
        {"type": "step", "data": {"tool_name": "submit_model", "metadata": None}},
        {"type": "step", "data": {"tool_name": "submit_model", "metadata": [5]}},
    ],
    ids=str,
)
def test_what_passes_openenv_has_nothing_to_say_against(envelope: dict[str, Any]) -> None:
    """It would say "Invalid message", and not which field."""
    refusal = messages.openenv_refusal(json.dumps(envelope))
    assert refusal is not None
    assert "must be an object" in refusal


@pytest.mark.parametrize("request_id", [True, 1.5, [1], {}])
def test_a_request_id_is_no_boolean_and_no_fraction(doors: Doors, request_id: object) -> None:
    request = {"jsonrpc": "2.0", "id": request_id, "method": "tools/list"}
    answer = doors.http.post("/mcp", json=request).json()
    assert answer["id"] is None
    assert answer["error"]["code"] == -32600
    assert answer["error"]["message"].startswith("id: must be a string or a whole number; got ")
