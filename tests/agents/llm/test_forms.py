"""Options and schemas that not every provider takes: what is at fault is found, and met once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from chats import ASKED, Clock, chat_with
from endpoint import Endpoint, call, error
from starlette.responses import JSONResponse

from ml_trainer_env.agents.llm.chat import EndpointError
from ml_trainer_env.agents.session import Tool
from ml_trainer_env.server.episode.tools import TOOLS


def rejecting(taken: dict[str, str | None], status: int, told: str = "unsupported: {}") -> Any:
    """A provider that takes just this value of each of these options; None: the option not at all.

    `told` is its error, about the name of the first one that it rejects.
    """

    def answer(body: dict[str, Any]) -> Any:
        wrong = [name for name, value in taken.items() if body.get(name, value) != value]
        return error(status, told.format(wrong[0])) if wrong else None

    return answer


@pytest.mark.parametrize("status", [400, 404, 422, 500])
@pytest.mark.parametrize(
    "taken",
    [
        {"reasoning_effort": None},
        {"tool_choice": "auto"},
        {"tool_choice": None},
        {"tool_choice": "auto", "reasoning_effort": None},
    ],
)
def test_a_rejected_option_is_met_once(taken: dict[str, str | None], status: int) -> None:
    endpoint = Endpoint()
    endpoint.arrived = rejecting(taken, status)
    with endpoint.serving():
        chat = chat_with(endpoint.url, Clock(), retries=0)
        assert all(chat.ask(ASKED, []).requests for _ in range(3))
    rejected = len(endpoint.requests) - 3
    assert rejected == len(taken) + ("tool_choice" in taken and taken["tool_choice"] is None)
    sent = {"tool_choice": "required", "reasoning_effort": "minimal"} | taken
    for request in endpoint.requests[-3:]:
        assert {name: request.get(name) for name in sent} == sent


@pytest.mark.parametrize("status", [400, 500])
def test_an_error_that_names_nothing_is_tried_without_each_option(status: int) -> None:
    endpoint = Endpoint()
    endpoint.arrived = rejecting({"tool_choice": "auto"}, status, "bad request")
    with endpoint.serving():
        assert chat_with(endpoint.url, Clock(), retries=0).ask(ASKED, []).requests
    assert len(endpoint.requests) == 2


def test_a_bad_request_that_is_not_about_options_ends_it() -> None:
    with (
        Endpoint(otherwise=error(400, "context too long")).serving() as endpoint,
        pytest.raises(EndpointError, match="context too long"),
    ):
        chat_with(endpoint.url, Clock()).ask(ASKED, [])
    assert len(endpoint.requests) == 4


def test_options_that_worked_once_are_not_suspected_again() -> None:
    endpoint = Endpoint(call("submit_model"), otherwise=error(500, "out of memory"))
    with endpoint.serving():
        chat = chat_with(endpoint.url, Clock(), retries=1)
        chat.ask(ASKED, [])
        with pytest.raises(EndpointError, match="out of memory"):
            chat.ask(ASKED, [])
    assert len(endpoint.requests) == 3
    assert all("tool_choice" in request for request in endpoint.requests)


# Schemas ------------------------------------------------------------------------------------------

Body = dict[str, Any]


def tools(*names: str) -> list[Tool]:
    return [
        Tool(name=name, description=TOOLS[name].description, input_schema=TOOLS[name].input_schema)
        for name in names
    ]


CONFIGURE, LATER = tools("configure_training"), tools("run_epochs", "submit_model")
EVERY = {"tool_choice", "reasoning_effort"}  # options


def functions(body: Body) -> list[dict[str, Any]]:
    return [tool["function"] for tool in body["tools"]]


def has_enum_of_numbers(body: Body) -> bool:
    properties = [f.get("parameters", {}).get("properties", {}) for f in functions(body)]
    schemas = [schema for each in properties for schema in each.values()]
    return any(not isinstance(word, str) for schema in schemas for word in schema.get("enum", ()))


def has_no_properties(body: Body) -> bool:
    given = [f["parameters"] for f in functions(body) if "parameters" in f]
    return any(not parameters["properties"] for parameters in given)


def has(keyword: str) -> Callable[[Body], bool]:
    return lambda body: f"'{keyword}'" in str(functions(body))


def lacks_parameters(body: Body) -> bool:
    return any("parameters" not in function for function in functions(body))


COMPLAINTS = [  # what a provider cannot read, and what it says about it
    (
        has_enum_of_numbers,
        "* GenerateContentRequest.tools[0].function_declarations[0].parameters.properties"
        "[batch_size].enum[0]: Invalid value at (TYPE_STRING), 64",
    ),
    (has_no_properties, "parameters.properties: should be non-empty for OBJECT type"),
    (has("additionalProperties"), "Unknown name 'additionalProperties': Cannot find field."),
    (has("exclusiveMinimum"), "Unsupported JSON schema fields: {'exclusiveMinimum'}"),
    (has("default"), "tools.0.custom.input_schema: JSON schema is invalid"),
    (has("maximum"), "For 'number' type, property 'maximum' is not supported in the schema"),
]


def saying(wrong: Callable[[Body], bool], answer: Any) -> Callable[[Body], Any]:
    return lambda body: answer if wrong(body) else None


def decisions(endpoint: Endpoint, *steps: Sequence[Tool]) -> list[Body]:
    """Ask for a decision with each of these lists of tools; the requests that were taken."""
    with endpoint.serving():
        chat = chat_with(endpoint.url, Clock(), retries=0)
        return [chat.ask(ASKED, step) and endpoint.requests[-1] for step in steps]


@pytest.mark.parametrize("status", [200, 400, 422, 500])
@pytest.mark.parametrize(("wrong", "told"), COMPLAINTS)
def test_schemas_are_made_plainer_and_no_option_is_given_up(
    wrong: Callable[[Body], bool], told: str, status: int
) -> None:
    endpoint = Endpoint()
    endpoint.arrived = saying(wrong, error(status, told))
    taken = decisions(endpoint, CONFIGURE, LATER, CONFIGURE, LATER)
    assert len(endpoint.requests) == 5  # the complaint is met once
    assert all(request.keys() >= EVERY for request in endpoint.requests)
    assert not any(wrong(request) for request in taken)


@pytest.mark.parametrize("told", ["Invalid request", "Internal error encountered."])
@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize("wrong", [wrong for wrong, _ in COMPLAINTS])
def test_a_complaint_that_names_nothing_is_tried_with_plainer_schemas_first(
    wrong: Callable[[Body], bool], status: int, told: str
) -> None:
    endpoint = Endpoint()
    endpoint.arrived = saying(wrong, error(status, told))
    taken = decisions(endpoint, CONFIGURE, LATER, CONFIGURE, LATER)
    assert len(endpoint.requests) == 5
    assert all(request.keys() >= EVERY for request in endpoint.requests)
    assert not any(wrong(request) for request in taken)


def test_a_provider_that_wants_parameters_gets_them() -> None:
    def picky(body: Body) -> Any:
        if has("additionalProperties")(body):
            return error(400, "additionalProperties is not supported")
        return error(422, "tools[1].parameters: is required") if lacks_parameters(body) else None

    endpoint = Endpoint()
    endpoint.arrived = picky
    taken = decisions(endpoint, CONFIGURE, LATER, LATER)
    assert len(endpoint.requests) == 5
    assert taken[-1].keys() >= EVERY


@pytest.mark.parametrize("named", [True, False])
def test_a_provider_that_takes_neither_is_met_too(named: bool) -> None:
    def picky(body: Body) -> Any:
        if has_enum_of_numbers(body):
            return error(400, "enum: must be strings" if named else "no")
        wrong = next((name for name in EVERY if name in body), None)
        return error(400, f"unknown field {wrong}" if named else "no") if wrong else None

    endpoint = Endpoint()
    endpoint.arrived = picky
    [taken] = decisions(endpoint, CONFIGURE)
    assert not has_enum_of_numbers(taken)
    assert not EVERY & taken.keys()


def test_schemas_stay_as_they_are_where_an_option_was_at_fault() -> None:
    endpoint = Endpoint()
    endpoint.arrived = rejecting({"tool_choice": "auto"}, 400, "no")
    [first, second] = decisions(endpoint, CONFIGURE, LATER)
    assert functions(first)[0]["parameters"] == CONFIGURE[0].input_schema
    assert functions(second)[1]["parameters"] == LATER[1].input_schema
    assert second["reasoning_effort"] == "minimal"


def test_a_complaint_about_schemas_that_nothing_cures_gives_up_no_option() -> None:
    endpoint = Endpoint(otherwise=error(400, "function_declarations are not supported"))
    with endpoint.serving(), pytest.raises(EndpointError, match="are not supported"):
        chat_with(endpoint.url, Clock(), retries=0).ask(ASKED, CONFIGURE)
    assert all(request.keys() >= EVERY for request in endpoint.requests)


@pytest.mark.parametrize("status", [401, 403, 429])
def test_who_may_not_ask_is_not_asked_in_another_form(status: int) -> None:
    endpoint = Endpoint(otherwise=error(status, "the schema of your reasoning_effort"))
    if status == 403:
        endpoint = Endpoint(otherwise=error(status, "no"))
    with endpoint.serving(), pytest.raises(EndpointError):
        chat_with(endpoint.url, Clock(), retries=0).ask(ASKED, CONFIGURE)
    assert len(endpoint.requests) == 1


def test_what_an_error_sends_back_of_the_request_is_no_complaint_about_it() -> None:
    def picky(body: Body) -> Any:
        if "reasoning_effort" not in body:
            return None
        fault = {"loc": ["body", "reasoning_effort"], "msg": "Extra inputs", "input": body}
        return JSONResponse({"detail": [fault]}, 422)

    endpoint = Endpoint()
    endpoint.arrived = picky
    [taken] = decisions(endpoint, CONFIGURE)
    assert len(endpoint.requests) == 2
    assert taken["tool_choice"] == "required"


def test_guesses_are_not_repeated_for_a_server_that_stays_broken() -> None:
    endpoint = Endpoint(otherwise=error(500, "out of memory"))
    with endpoint.serving(), pytest.raises(EndpointError, match="out of memory"):
        chat_with(endpoint.url, Clock(), retries=3).ask(ASKED, CONFIGURE)
    assert len(endpoint.requests) == 4 + 5
