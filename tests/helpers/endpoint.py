"""A chat-completions endpoint that answers from a script, for the real OpenAI client over HTTP.

`raw_endpoint` answers the same bytes to everybody, status line and all.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from live import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Answer = Response | dict[str, Any] | bytes  # bytes: a body of status 200


def message(content: str | None = None, *calls: tuple[str, str]) -> dict[str, Any]:
    """A completion with this text and these (name, arguments) calls."""
    tool_calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": text}}
        for n, (name, text) in enumerate(calls)
    ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls" if calls else "stop",
                "message": {
                    "role": "assistant",
                    "content": content,
                    **({"tool_calls": tool_calls} if calls else {}),
                },
            }
        ],
    }


def call(name: str, /, **arguments: Any) -> dict[str, Any]:
    return message(None, (name, json.dumps(arguments)))


def choice(**fields: Any) -> dict[str, Any]:
    """A completion with this one choice."""
    return {"choices": [fields]}


def error(status: int, text: str, code: str | None = None, **headers: str) -> Response:
    body = {"error": {"message": text, "type": "error", "param": None, "code": code}}
    dashed = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(body, status, headers=dashed)


class Endpoint:
    """Answers `script` in its order, then `otherwise`. `requests` has the bodies as they came."""

    def __init__(self, *script: Answer, otherwise: Answer | None = None) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.arrived: Callable[[dict[str, Any]], Answer | None] = lambda body: None
        self._script = list(script)
        self._otherwise = otherwise if otherwise is not None else call("run_epochs", num_epochs=1)

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        answer = self.arrived(body)
        if answer is None:
            answer = self._script.pop(0) if self._script else self._otherwise
        if isinstance(answer, bytes):
            return Response(answer)
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    def prompt(self, number: int) -> str:
        """What the model was told in this request, counted from 0."""
        return "\n".join(m["content"] for m in self.requests[number]["messages"])

    @contextmanager
    def serving(self) -> Iterator[Endpoint]:
        route = Route("/v1/chat/completions", self.answer, methods=["POST"])
        with serving(Starlette(routes=[route])) as url:
            self.url = f"{url}/v1"
            yield self


@contextmanager
def raw_endpoint(answer: bytes) -> Iterator[str]:
    """Its base URL. Every connection gets `answer` after its first request, and is closed."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
