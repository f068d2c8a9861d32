"""A chat-completions endpoint that answers from a script, for the real OpenAI client over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from live import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Answer = Response | dict[str, Any]


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
