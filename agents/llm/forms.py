"""How a provider wants to be asked: which options it takes, and in which form it reads schemas.

Nobody says it beforehand, so the fullest form is tried first and each complaint makes it smaller by
what the complaint is about. Where it is about nothing that can be told, the suspects are tried one
after the other, and no more is given up than what helped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ml_trainer_env.agents.llm import schemas
from ml_trainer_env.agents.llm.faults import Fault
from ml_trainer_env.agents.session import Tool

Option = tuple[str, str]  # name and value

_NOT_ABOUT_THE_FORM = (None, 401, 402, 408, 429)  # statuses, whatever their text happens to name
_SUSPICIOUS = (400, 422)  # and 500 and above, where a complaint names nothing
_OF_SCHEMAS = re.compile(
    r"schema|\benum\b|properties|exclusive(?:min|max)|(?:any|one|all)_?of\b|function_?declaration"
    r"|tools?\W{0,3}\d|non-empty|\$(?:ref|defs)|\bparameters\b.{0,20}(?:missing|required)"
    r"|(?:missing|required)\b.{0,20}\bparameters\b|keyword",
    re.IGNORECASE,
)
_ALIASES = {"reasoning_effort": ("thinking",)}  # how complaints call it, too


@dataclass(frozen=True, slots=True)
class Form:
    """One way to ask."""

    wanted: tuple[Option, ...]
    schemas: int = schemas.LISTED

    @property
    def options(self) -> dict[str, str]:
        """Of each option the first of its values that is left."""
        options: dict[str, str] = {}
        for name, value in self.wanted:
            options.setdefault(name, value)
        return options

    def request(self, tools: Sequence[Tool]) -> dict[str, Any]:
        """What is sent beside the model and the messages."""
        functions = [schemas.function(tool, self.schemas) for tool in tools]
        return {"tools": functions, **self.options}

    def without(self, name: str) -> Form:
        """Without the value that this option has."""
        rejected = (name, self.options[name])
        return replace(self, wanted=tuple(each for each in self.wanted if each != rejected))


class Search:
    """The forms to try for one request, each after the complaint about the one before it."""

    def __init__(self, form: Form, *, options: bool, schemas: bool) -> None:
        """`options`, `schemas`: whether these may be at fault where a complaint names nothing."""
        self.form = form
        self.fault: Fault | None = None  # what to tell when nothing helps
        self._base = form
        self._suspects = (options, schemas)
        self._guesses: Iterator[Form] | None = None

    @property
    def guessing(self) -> bool:
        """Whether the present form is a guess."""
        return self._guesses is not None

    def go_on(self, fault: Fault) -> bool:
        """Take the complaint about `form`, and say whether there is another one to try."""
        if fault.status in _NOT_ABOUT_THE_FORM:
            self.fault = fault
            return False
        named = _named(fault, self.form)
        about_schemas = named is None and _OF_SCHEMAS.search(fault.about) is not None
        if named is not None:
            self._restart(self._base.without(named))
        elif about_schemas and self.form.schemas < schemas.PLAIN_AND_EMPTY:
            self._restart(replace(self._base, schemas=self.form.schemas + 1))
        elif about_schemas or not _is_suspicious(fault):
            self.fault = fault
            return False
        else:
            return self._guess(fault)
        return True

    def _restart(self, form: Form) -> None:
        self.form = self._base = form
        self._guesses = None

    def _guess(self, fault: Fault) -> bool:
        if self._guesses is None:
            self.fault = fault
            self._guesses = iter(self._suspected())
        form = next(self._guesses, None)
        self.form = form or self.form
        return form is not None

    def _suspected(self) -> Iterator[Form]:
        """First with plainer schemas, which loses nothing; then with fewer options."""
        options, listed = self._suspects
        listed = listed and self._base.schemas == schemas.LISTED
        if listed:
            yield replace(self._base, schemas=schemas.PLAIN)
        form = self._base
        while options and form.options:
            form = form.without(next(iter(form.options)))
            yield form
        if listed and options:
            yield replace(form, schemas=schemas.PLAIN)


def _named(fault: Fault, form: Form) -> str | None:
    """The option that the complaint is about."""
    text = re.sub(r"[^a-z]", "", fault.about.lower())
    for name in form.options:
        names = (name, *_ALIASES.get(name, ()))
        if any(each.replace("_", "") in text for each in names):
            return name
    return None


def _is_suspicious(fault: Fault) -> bool:
    """llama.cpp's server answers a `tool_choice` that it does not know with a bare 500."""
    return fault.status is not None and (fault.status in _SUSPICIOUS or fault.status >= 500)
