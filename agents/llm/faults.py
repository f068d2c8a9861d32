"""What came instead of an answer: one type, whoever says it and in whatever shape.

Pure functions of what an endpoint sent. An error is read from the status and from the body, since
providers put one into a body of status 200 too; and so is the time that it asks to wait (`waits`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from ml_trainer_env.agents.llm import values
from ml_trainer_env.agents.llm.values import Fields
from ml_trainer_env.agents.llm.waits import LIMITED, PATIENCE, asked_to_wait

PAGE = 10_000  # characters of a page that are looked at

_PASSING = (408, 409, 425, LIMITED)  # and 500 and above
# What the names in errors mean as a status; the first that fits.
_MEANINGS = (
    ("insufficient|billing|payment|balance|credits", 402),
    ("ratelimit|toomany|exhausted|throttl|quota", LIMITED),
    ("overloaded|unavailable|timeout|deadline|internal|servererror", 503),
    ("unauthenticated|unauthorized|authentication|apikey", 401),
    ("permission|forbidden", 403),
    ("notfound", 404),
    ("invalid|badrequest|validation|unsupported|unprocessable|precondition", 400),
)
_WITHIN = ("error", "errors", "metadata", "detail")  # where the particulars are
_CODES = ("code", "status", "status_code", "statusCode", "http_status", "type", "reason")
_WORDS = ("message", "msg", "detail", "error_description", "description", "title", "error")
_PARTICULARS = (*_WORDS, "field", "param", "parameter", "loc", "raw", "failure")
_SENT_BACK = ("input", "body", "request", "ctx")
_MARKUP = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


class Fault(Exception):
    """No answer, and why: in the endpoint's own words, which may hold anything.

    `status` is HTTP's, or what an error in a body means in it; None: nothing came.
    `wait`: seconds until the same request may be answered, as far as the endpoint says.
    `about`: all that may say what is at fault.
    """

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        may_pass: bool = True,
        wait: float | None = None,
        about: str = "",
    ) -> None:
        super().__init__(text)
        self.status = status
        self.may_pass = may_pass and (wait is None or wait <= PATIENCE)
        self.wait = wait
        self.about = about or text


def of_response(status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    """What an HTTP status of 400 or more means."""
    text = body.decode("utf-8", "replace")
    error = values.parsed(text)
    return _fault(status, words(error) if is_error(error) else plain(text), headers, error)


def of_error(error: object, headers: Mapping[str, str]) -> Fault:
    """What an error in a body of status 200 means."""
    return _fault(_status(error), f"{words(error)} (in an answer)", headers, error)


def _fault(status: int, said: str, headers: Mapping[str, str], error: object) -> Fault:
    spent = status == LIMITED and _meaning(names_in(error)) == 402
    return Fault(
        f"Error code: {status} - {said}",
        status=status,
        may_pass=(status in _PASSING or status >= 500) and not spent,
        wait=asked_to_wait(status, headers, error),
        about=f"{said} {_particulars(error)}",
    )


def plain(text: str) -> str:
    """The beginning, without the tags of a page."""
    return _MARKUP.sub(" ", text[:PAGE])


def is_error(body: object) -> bool:
    """Whether the value holds an error, or is one."""
    for outer in values.objects(body)[:1]:
        if outer.get("error") or outer.get("errors"):
            return True
        says = any(isinstance(outer.get(name), str | list) for name in _WORDS)
        return "choices" not in outer and (says or _stated([outer]) is not None)
    return False


def names_in(error: object) -> list[str]:
    """How the error calls itself: its codes and types, from the outside in."""
    found = (layer.get(name) for layer in _layers(error) for name in _CODES)
    return [str(name) for name in found if isinstance(name, str | int)]


def words(error: object) -> str:
    """What the error says, and where a gateway passes a provider's error on, that too."""
    said: list[str] = []
    for layer in _layers(error):
        said += [layer[name] for name in _WORDS if isinstance(layer.get(name), str)][:1]
        said += [layer["raw"]] if isinstance(layer.get("raw"), str) else []
    return ": ".join(dict.fromkeys(said)) or values.written(error)


def _particulars(error: object) -> str:
    """Everything that may name a culprit, but for what is sent back of the request."""
    everything = values.all_objects(error, without=_SENT_BACK)
    found = (inner[name] for inner in everything for name in _PARTICULARS if name in inner)
    return " ".join(values.written(each) for each in found if not values.objects(each))[:PAGE]


def _layers(error: object) -> Iterator[Fields]:
    """The error's objects, each within the one before. Of a list, the first counts."""
    for _ in range(values.DEPTH):
        for layer in values.objects(error)[:1]:
            yield layer
            inner = (layer.get(name) for name in _WITHIN)
            error = next((each for each in inner if values.objects(each)), None)


def _status(error: object) -> int:
    """An HTTP status for an error that came without one; 500 where it does not say."""
    return _stated(_layers(error)) or _meaning(names_in(error)) or _meaning([words(error)]) or 500


def _stated(layers: Iterable[Fields]) -> int | None:
    """The first code that is a status of HTTP."""
    found = (values.written(layer.get(name)) for layer in layers for name in _CODES)
    return next((int(code) for code in found if re.fullmatch("[45][0-9][0-9]", code)), None)


def _meaning(names: Iterable[str]) -> int | None:
    letters = re.sub(r"[^a-z]", "", " ".join(names).lower())
    return next((status for name, status in _MEANINGS if re.search(name, letters)), None)
