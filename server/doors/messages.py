"""Which incoming messages are refused before OpenEnv reads them, and what is answered instead.

Pure functions. OpenEnv ends the session, or answers 500, on a message that is not a JSON object,
is nested too deeply, or holds text that cannot be sent back; and its own models would make a number
of "3" and of true. So every message is held against its model here, as it came, and means the same
at every door. Everything that passes OpenEnv handles itself. The answers are in the protocol of the
door: OpenEnv's error message, or JSON-RPC's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from openenv.core.env_server.mcp_types import (
    CallToolAction,
    JsonRpcErrorCode,
    JsonRpcRequest,
    JsonRpcResponse,
    ListToolsAction,
    WSMCPMessage,
)
from openenv.core.env_server.types import (
    BaseMessage,
    GetTaskRangeRequest,
    GetTaskRequest,
    ListTasksRequest,
    NumTasksRequest,
    StepRequest,
    WSCloseMessage,
    WSErrorCode,
    WSErrorResponse,
    WSResetMessage,
    WSStateMessage,
    WSStepMessage,
)
from pydantic import BaseModel

from ml_trainer_env.server.doors.paths import (
    OPENENV_MCP,
    PAGE,
    STANDARD_MCP,
    STANDARD_MCP_ADDRESS,
    WEBSOCKET,
)
from ml_trainer_env.server.session.reset_options import ResetOptions
from ml_trainer_env.server.validation import ActionError, InvalidArguments, shown, validate

MAX_BYTES = 64 * 1024  # a tool call takes a few hundred
MAX_DEPTH = 16  # nested objects and lists

_MESSAGES: dict[str, type[BaseMessage]] = {
    "reset": WSResetMessage,
    "step": WSStepMessage,
    "state": WSStateMessage,
    "close": WSCloseMessage,
    "mcp": WSMCPMessage,
}
_ACTIONS = {"call_tool": CallToolAction, "list_tools": ListToolsAction}
_TASK_API: dict[str, type[BaseMessage]] = {  # by the end of the path: /NAME/tasks
    "tasks": ListTasksRequest,
    "num_tasks": NumTasksRequest,
    "task": GetTaskRequest,
    "task_range": GetTaskRangeRequest,
}
_OPENENV_METHODS = ("tools/list", "tools/call", "openenv/session/create", "openenv/session/close")


class BadMessage(ActionError):
    """Not a JSON object that can be handled, whatever it means."""


class BadRequest(ActionError):
    """Not a request of JSON-RPC."""


class UnknownMethod(ActionError):
    """A method of JSON-RPC that OpenEnv's dialect lacks; the message says where standard MCP is."""


def openenv_refusal(text: str, root: str = "") -> str | None:
    """OpenEnv's error for a message to `/ws`; None when it may pass. `root`: of all addresses."""
    try:
        message = _json_object(text)
        _check_openenv(message)
        return None
    except BadMessage as error:
        code = WSErrorCode.INVALID_JSON
        problem = error
    except ActionError as error:
        code = WSErrorCode.VALIDATION_ERROR
        problem = error
    return WSErrorResponse(data={"message": str(problem), "code": code}).model_dump_json()


def rpc_refusal(text: str | bytes, root: str = "") -> str | None:
    """The JSON-RPC error for a request to `/mcp`; None when it may pass. `root`: as above."""
    request_id = None
    try:
        request = _json_object(text)
        if type(request.get("id")) in (str, int):  # true is an int in Python
            request_id = request["id"]
        _check_rpc(request)
        _check_method(request, root)
        return None
    except BadMessage as error:
        code, problem = JsonRpcErrorCode.PARSE_ERROR, error
    except BadRequest as error:
        code, problem = JsonRpcErrorCode.INVALID_REQUEST, error
    except UnknownMethod as error:
        code, problem = JsonRpcErrorCode.METHOD_NOT_FOUND, error
    except ActionError as error:
        code, problem = JsonRpcErrorCode.INVALID_PARAMS, error
    return JsonRpcResponse.error_response(
        code, str(problem), request_id=request_id
    ).model_dump_json()


def http_refusal(route: str, body: bytes, root: str = "") -> tuple[int, dict[str, Any]] | None:
    """Status and content of the answer to a POST that is refused; None when it may pass."""
    if route == OPENENV_MCP:
        answer = rpc_refusal(body, root)
        return None if answer is None else (200, json.loads(answer))
    if len(body) > MAX_BYTES:
        return 413, {"detail": f"a request must be at most {MAX_BYTES} bytes long"}
    if route.startswith(STANDARD_MCP):
        return _standard_mcp_refusal(body)
    if route.startswith(PAGE):
        return None
    if not body:  # a reset without options
        return None
    try:
        content = _json_object(body)
        _check_finite(content)
        _check_body(route, content)
    except ActionError as error:
        return 422, {"detail": str(error)}
    return None


def _standard_mcp_refusal(body: bytes) -> tuple[int, dict[str, Any]] | None:
    """The SDK answers 500 to what is not UTF-8, too deep, or holds half a surrogate pair."""
    try:
        _json_object(body)
    except BadMessage as error:
        problem = JsonRpcResponse.error_response(JsonRpcErrorCode.PARSE_ERROR, str(error))
        return 400, problem.model_dump()
    return None


_AT_CAPACITY = "Cannot accept new connections"  # how OpenEnv ends its refusal, at every door
Text = TypeVar("Text", str, bytes)


def is_refusal(answer: str | bytes) -> bool:
    """Whether OpenEnv answers that all places are taken."""
    return _AT_CAPACITY in (answer if isinstance(answer, str) else answer.decode())


def with_retry_hint(refusal: Text, seconds: int) -> Text:
    """The refusal, with when to try again."""
    hint = f"{_AT_CAPACITY}; try again in about {seconds} s"
    if isinstance(refusal, bytes):
        return refusal.replace(_AT_CAPACITY.encode(), hint.encode())
    return refusal.replace(_AT_CAPACITY, hint)


WEBSOCKET_DOORS: dict[str, Callable[[str, str], str | None]] = {
    WEBSOCKET: openenv_refusal,
    OPENENV_MCP: rpc_refusal,
}


def where_standard_mcp_is(root: str) -> str:
    """For a standard client that came to OpenEnv's door."""
    return (
        f"{root}{OPENENV_MCP} speaks OpenEnv's own dialect, {', '.join(_OPENENV_METHODS)}; "
        f"standard MCP clients connect to {root}{STANDARD_MCP_ADDRESS}"
    )


def _check_method(request: dict[str, Any], root: str) -> None:
    """Raise `UnknownMethod`; OpenEnv says what is wrong with a request that is none."""
    method = request.get("method")
    is_request = request.get("jsonrpc") == "2.0" and isinstance(method, str)
    if is_request and method not in _OPENENV_METHODS:
        raise UnknownMethod(f"Method not found: {shown(method)}; {where_standard_mcp_is(root)}")


def _check_openenv(message: dict[str, Any]) -> None:
    """Raise `InvalidArguments` unless `message` has the form of an OpenEnv message."""
    kind = message.get("type")
    if not isinstance(kind, str) or kind not in _MESSAGES:
        raise InvalidArguments(f"type: must be one of {', '.join(_MESSAGES)}; got {shown(kind)}")
    _check(_MESSAGES[kind], message, f"a {kind} message")
    if kind == "step":
        _check_action("data", message["data"])
    if kind == "mcp":
        _check_rpc(message["data"])


def _check_action(where: str, action: dict[str, Any]) -> None:
    """Raise `InvalidArguments` unless `action`, the field `where` of a message, is one."""
    kind = action.get("type", "call_tool")
    if not isinstance(kind, str) or kind not in _ACTIONS:
        allowed = ", ".join(_ACTIONS)
        raise InvalidArguments(f"{where}.type: must be one of {allowed}; got {shown(kind)}")
    _check(_ACTIONS[kind], action, f"the action {kind}")


def _check_body(path: str, body: dict[str, Any]) -> None:
    """Raise `InvalidArguments` unless `body` is what is sent to `path`."""
    if path == "/reset":
        validate(ResetOptions, body, subject="reset")
    elif path == "/step":
        _check(StepRequest, body, "a step")
        _check_action("action", body["action"])
    elif (name := path.rpartition("/")[2]) in _TASK_API:
        _check(_TASK_API[name], body, "this request")


def _check(model: type[BaseModel], message: dict[str, Any], subject: str) -> None:
    """Raise `InvalidArguments` unless `message` is one that OpenEnv reads as it was meant."""
    validate(model, message, subject=subject, null_is_absent=False)


def _check_rpc(request: dict[str, Any]) -> None:
    """Raise `BadRequest`, or `InvalidArguments` for parameters that OpenEnv takes as they come."""
    try:
        _check(JsonRpcRequest, request, "a request")
    except InvalidArguments as error:
        raise BadRequest(str(error)) from None
    params = request.get("params", {})
    for name, kind, allowed in (
        ("session_id", str, "a string"),
        ("name", str, "a string, the name of a tool"),
        ("arguments", dict, "an object"),
    ):
        if name in params and not isinstance(params[name], kind):
            raise InvalidArguments(f"{name}: must be {allowed}; got {shown(params[name])}")


def _json_object(text: str | bytes) -> dict[str, Any]:
    """`text` as a JSON object that can be handled. Raises `BadMessage`."""
    if not text:
        raise BadMessage("a message must be a JSON object in a text frame")
    if len(text) > MAX_BYTES:
        raise BadMessage(f"a message must be at most {MAX_BYTES} bytes long")
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be sent back
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"Invalid JSON: {shown(str(error))}") from None
    if not isinstance(value, dict):
        raise BadMessage(f"a message must be a JSON object; got {shown(value)}")
    if _is_deeper_than(MAX_DEPTH, value):
        raise BadMessage(f"a message must be nested at most {MAX_DEPTH} levels deep")
    return value


def _is_deeper_than(levels: int, value: object) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    return levels == 0 or any(_is_deeper_than(levels - 1, child) for child in _children(value))


def _check_finite(value: object) -> None:
    """Raise `BadMessage` for NaN and infinity: over HTTP they cannot be sent back."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadMessage("NaN and Infinity are not JSON numbers")
    if isinstance(value, (dict, list)):
        for child in _children(value):
            _check_finite(child)


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
