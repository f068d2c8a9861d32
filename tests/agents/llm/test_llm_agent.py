"""A language model that plays: what it is asked, what it may answer, what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from answers import anything, completions
from endpoint import Answer, Endpoint, call, choice, error, message
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from live import free_port
from starlette.responses import JSONResponse

from ml_trainer_env import inference
from ml_trainer_env.agents import records
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.llm import agent, chat
from ml_trainer_env.agents.llm.chat import Chat
from ml_trainer_env.agents.llm.settings import LLMSettings
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.records import Line
from ml_trainer_env.agents.session import Connect, RemoteSession
from ml_trainer_env.models import MAX_TOOL_CALLS
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.task_ids import CLASSIC_IDS

SUBMITTED = call("submit_model")
VARIABLES = [name.upper() for name in LLMSettings.model_fields]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables and no .env of whoever runs the tests; a working folder to write in."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["over the wire", "in process"])
def connect(request: pytest.FixtureRequest, env: MLTrainerEnvironment) -> Iterator[Connect]:
    if request.param == "in process":
        yield partial(LocalSession, env)
    else:
        yield partial(RemoteSession, request.getfixturevalue("url"))


def play(endpoint: Endpoint, connect: Connect, decisions: int = 8) -> tuple[Attempt, list[Line]]:
    lines: list[Line] = []
    with endpoint.serving(), Attempt("llm", connect, "easy_mnist", 0, [lines.append]) as attempt:
        agent.play(attempt, Chat(settings(endpoint)), decisions)
    return attempt, lines


def settings(endpoint: Endpoint) -> LLMSettings:
    return LLMSettings.model_validate(
        {"api_base_url": endpoint.url, "openai_api_key": "k", "llm_rpm_limit": 10**6}
    )


def test_calls_in_other_shapes_are_played(connect: Connect) -> None:
    config = {"optimizer": "adamw", "learning_rate": 0.003}
    endpoint = Endpoint(
        choice(
            message={
                "content": [{"type": "text", "text": "So:"}],
                "tool_calls": {"name": "configure_training", "parameters": config},
            }
        ),
        message('<tool_call>{"name": "run_epochs", "arguments": {"num_epochs": 20}}</tool_call>'),
        choice(message={"function_call": {"name": "submit_model", "arguments": None}}),
    )
    attempt, _ = play(endpoint, connect)
    assert attempt.ended is not None
    assert (attempt.ended.epochs, attempt.ended.errors) == (20, 0)
    assert attempt.ended.grade.submitted_by == "agent"


def test_a_good_model_plays_an_episode(connect: Connect) -> None:
    endpoint = Endpoint(
        call("configure_training", optimizer="adamw", learning_rate=0.003),
        call("run_epochs", num_epochs=20),
        SUBMITTED,
    )
    attempt, lines = play(endpoint, connect)
    assert attempt.ended is not None
    assert (attempt.ended.epochs, attempt.ended.errors) == (20, 0)
    assert attempt.ended.grade.submitted_by == "agent"
    called = [line.tool for line in lines if isinstance(line, records.Called)]
    assert called == ["configure_training", "run_epochs", "submit_model"]
    assert "clip((validation accuracy - 0.88)" in endpoint.prompt(0)
    assert "epoch 20 of 100" in endpoint.prompt(2)
    assert "optimizer=adamw" in endpoint.prompt(2)


def test_the_tools_are_those_that_the_environment_lists(
    connect: Connect, env: MLTrainerEnvironment
) -> None:
    endpoint = Endpoint(call("configure_training"), call("run_epochs", num_epochs=1), SUBMITTED)
    play(endpoint, connect)
    listed = {tool.name: tool for tool in LocalSession(env).tools()}
    sent = [tool["function"] for request in endpoint.requests for tool in request["tools"]]
    assert {tool["name"] for tool in sent} == listed.keys() - {"get_training_status"}
    for tool in sent:
        assert tool["description"] == listed[tool["name"]].description
        assert tool["parameters"] == listed[tool["name"]].input_schema


def offered(request: dict[str, Any]) -> set[str]:
    return {tool["function"]["name"] for tool in request["tools"]}


def test_only_what_can_be_done_is_offered(env: MLTrainerEnvironment) -> None:
    endpoint = Endpoint(
        call("configure_training", learning_rate=10),
        call("run_epochs", num_epochs=1),  # diverges
        call("adjust_learning_rate", new_lr=0.001),
        *[call("run_epochs", num_epochs=20)] * 5,
        SUBMITTED,
    )
    play(endpoint, partial(LocalSession, env), decisions=9)
    change = {"configure_training", "adjust_learning_rate", "toggle_augmentation"}
    assert [offered(request) for request in endpoint.requests] == [
        {"configure_training"},
        change | {"run_epochs"},
        change | {"submit_model"},
        *[change | {"run_epochs", "submit_model"}] * 5,
        {"submit_model"},
    ]


def test_after_the_last_decision_the_best_model_is_submitted(connect: Connect) -> None:
    endpoint = Endpoint(call("configure_training"), otherwise=call("run_epochs", num_epochs=2))
    attempt, _ = play(endpoint, connect, decisions=4)
    assert len(endpoint.requests) == 4
    assert attempt.ended is not None
    assert attempt.ended.epochs == 6
    assert attempt.ended.grade.score > 0


DEEP = '{"learning_rate": ' + "[" * 500 + "]" * 500 + "}"


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (message("I would lower the learning rate."), "not a tool call; call exactly one tool"),
        (message(None), "not a tool call"),
        (choice(message={"content": ""}, finish_reason="length"), "cut off at the length limit"),
        (choice(message={}, finish_reason="content_filter"), "withheld by the provider's filter"),
        (choice(message={"refusal": "I can't."}), "was a refusal"),
        (choice(message={"tool_calls": [{"function": {}}]}), "no name of a tool"),
        (call("train_faster", speed=9), 'no tool is named "train_faster"; the tools are'),
        (call("run_epochs", num_epochs=21), "must be a whole number with 1 <= num_epochs <= 20"),
        (call("run_epochs", num_epochs="five"), "num_epochs: must be a whole number"),
        (call("configure_training", optimizer="lion"), 'optimizer: must be one of "sgd"'),
        (call("configure_training", name="x", tool="y", self=1), '"name": unknown'),
        (message(None, ("configure_training", '{"learning_rate": 0.')), "must be a JSON object"),
        (message(None, ("configure_training", "[0.1]")), "must be a JSON object"),
        (message(None, ("configure_training", '"0.1"')), "must be a JSON object"),
        (message(None, ("configure_training", '{"learning_rate": NaN}')), "must be a JSON object"),
        (message(None, ("configure_training", '{"learning_rate": 1e999}')), "must be a JSON"),
        (message(None, ("configure_training", '{"\\ud800": 1}')), '"?": unknown'),
        (message(None, ("configure_training", DEEP)), "nothing done"),
        (call("configure_training", optimizer="x" * 70_000), "nothing done"),
        (call("\u0000" * 99, x="\u202e" * 999), "nothing done"),
        (call("run_epochs", num_epochs=5), "nothing is configured yet"),
    ],
)
def test_a_bad_reply_is_explained_and_the_episode_goes_on(
    bad: Answer, told: str, env: MLTrainerEnvironment
) -> None:
    endpoint = Endpoint(bad, call("configure_training"), call("run_epochs", num_epochs=3))
    attempt, lines = play(endpoint, partial(LocalSession, env), decisions=3)
    assert "nothing done" in endpoint.prompt(1)
    assert told in endpoint.prompt(1)
    assert attempt.ended is not None
    assert attempt.ended.epochs == 3
    assert len(endpoint.requests) == 3
    [*_, last] = lines
    assert records.Ended.model_validate_json(last.model_dump_json()) == last


@pytest.mark.parametrize(
    "text", [f'{{"x": {"[" * 20}{"]" * 20}}}', f'{{"optimizer": "{"x" * 70_000}"}}']
)
def test_what_the_server_refuses_to_read_is_explained_too(text: str, url: str) -> None:
    endpoint = Endpoint(message(None, ("configure_training", text)))
    play(endpoint, partial(RemoteSession, url), decisions=2)
    assert "nothing done" in endpoint.prompt(1)
    assert "a message must be" in endpoint.prompt(1)


def test_of_two_calls_the_first_counts(connect: Connect) -> None:
    two = message(
        None, ("configure_training", '{"optimizer": "sgd"}'), ("run_epochs", '{"num_epochs": 9}')
    )
    endpoint = Endpoint(two, SUBMITTED)
    attempt, _ = play(endpoint, connect)
    assert "1 other call(s) were not carried out: one tool call a reply" in endpoint.prompt(1)
    assert "optimizer=sgd" in endpoint.prompt(1)
    assert attempt.ended is not None
    assert attempt.ended.epochs == 0


def test_a_model_that_only_talks_still_ends(connect: Connect) -> None:
    endpoint = Endpoint(otherwise=message("Let me think about it. " * 1000))
    attempt, lines = play(endpoint, connect, decisions=7)
    assert len(endpoint.requests) == 7
    assert attempt.ended is not None
    assert attempt.ended.grade.score == 0
    assert sum(isinstance(line, records.Remark) for line in lines) == 7


@pytest.mark.parametrize(
    "reply",
    [
        message("Let me think about it. " * 1000),
        call("run_epochs", num_epochs="x" * 9999),
        call("configure_training", **{f"option_{n}": n for n in range(500)}),
    ],
)
def test_a_prompt_stays_short_whatever_was_answered(
    reply: Answer, env: MLTrainerEnvironment
) -> None:
    endpoint = Endpoint(otherwise=reply)
    play(endpoint, partial(LocalSession, env), decisions=7)
    assert len(endpoint.prompt(6)) < 4000


def test_a_model_may_play_to_the_call_limit(connect: Connect) -> None:
    endpoint = Endpoint(otherwise=call("configure_training"))
    attempt, _ = play(endpoint, connect, decisions=99)
    assert len(endpoint.requests) == MAX_TOOL_CALLS
    assert attempt.ended is not None
    assert attempt.ended.grade.submitted_by == "call_limit"


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def configured(url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Endpoint], None]:
    def configure(endpoint: Endpoint) -> None:
        variables = {
            "ENV_URL": url,
            "API_BASE_URL": endpoint.url,
            "OPENAI_API_KEY": "k",
            "MODEL_NAME": "scripted/one",
            "LLM_RPM_LIMIT": "100000",
            "LLM_MAX_RETRIES": "0",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return configure


def played(body: dict[str, Any]) -> Answer:
    """Configures, trains twice, submits."""
    told = body["messages"][-1]["content"]
    if "nothing is configured" in told:
        return call("configure_training")
    return SUBMITTED if "\n3. " in told else call("run_epochs", num_epochs=10)


def test_all_tasks_are_played_recorded_and_shown(
    configured: Callable[[Endpoint], None], capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = Endpoint()
    endpoint.arrived = played
    with endpoint.serving():
        configured(endpoint)
        assert inference.main() == 0
    out = capsys.readouterr().out
    assert "Summary" in out
    paths = list(records.find(Path("outputs/evals")))
    kept = [records.read(path) for path in paths]
    assert {record.header.task_id for record in kept} == set(CLASSIC_IDS)
    assert {record.header.model for record in kept} == {"scripted/one"}
    assert all(record.end.epochs == 20 for record in kept)
    assert all(f"{record.end.grade.score:.4f}" in out for record in kept)
    for line in paths[0].read_text().splitlines():  # readable by anyone
        json.loads(line, parse_constant=pytest.fail)


def test_an_endpoint_that_dies_ends_it_and_keeps_what_was_finished(
    configured: Callable[[Endpoint], None], capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = Endpoint()

    def dying(body: dict[str, Any]) -> Answer:
        second_task = len(endpoint.requests) > 5
        return error(500, "out of memory") if second_task else played(body)

    endpoint.arrived = dying
    with endpoint.serving():
        configured(endpoint)
        assert inference.main() == 1
    out = capsys.readouterr().out
    assert "medium_fashion failed" in out
    assert "500 - out of memory" in " ".join(out.split())
    [path] = records.find(Path("outputs/evals"))
    assert records.read(path).header.task_id == "easy_mnist"
    assert f"{records.read(path).end.grade.score:.4f}" in out
    [part] = Path("outputs/evals").rglob("*.part")
    assert '"tool":"configure_training"' in part.read_text()


BROKEN: dict[str, Answer] = {
    "an error with status 200": {"error": {"code": 429, "message": "slow down"}},
    "in a list": JSONResponse([{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}]),
    "within the choice": choice(error={"code": 502, "message": "x"}, finish_reason="error"),
    "no choices": {"choices": []},
    "no message": choice(finish_reason="stop"),
    "another protocol": {"object": "list", "data": []},
    "an empty body": b"",
    "half a body": b'{"choices": [{"mess',
    "a page": b"<html>Welcome</html>",
    "a status": error(503, "overloaded"),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_endpoint_is_never_a_score(
    answer: Answer,
    configured: Callable[[Endpoint], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat, "FAULT_WAIT", 0.0)
    monkeypatch.setattr(chat, "QUOTA_WAIT", 0.0)
    endpoint = Endpoint(otherwise=answer)
    with endpoint.serving():
        configured(endpoint)
        monkeypatch.setenv("LLM_MAX_RETRIES", "2")
        assert inference.main() == 1
    retried = answer != BROKEN["a page"]
    assert len(endpoint.requests) >= (3 if retried else 1)
    out, err = capsys.readouterr()
    [told] = [line for line in out.splitlines() if "failed" in line]
    assert told.startswith(f"easy_mnist failed: {endpoint.url}: ")
    assert "Summary" not in out
    assert err == ""
    assert not list(records.find(Path("outputs/evals")))


@settings_of_hypothesis(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(answers=st.lists(completions | anything, max_size=4))
def test_whatever_is_answered_it_ends_in_a_grade_or_in_one_line(
    answers: list[Any],
    configured: Callable[[Endpoint], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLM_TASKS", "easy_mnist")
    endpoint = Endpoint(*(json.dumps(answer).encode() for answer in answers), otherwise=SUBMITTED)
    with endpoint.serving():
        configured(endpoint)
        status = inference.main()
    out, err = capsys.readouterr()
    failed = [line for line in out.splitlines() if line.startswith("easy_mnist failed: ")]
    assert (status, len(failed), "Summary" in out) in ((0, 0, True), (1, 1, False))
    assert err == ""
    for path in Path("outputs").rglob("*.jsonl*"):
        path.read_bytes().decode()  # strictly


def test_an_endpoint_that_was_never_there(
    configured: Callable[[Endpoint], None], capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = Endpoint()
    endpoint.url = f"http://127.0.0.1:{free_port()}/v1"
    configured(endpoint)
    assert inference.main() == 1
    assert "easy_mnist failed" in capsys.readouterr().out


def test_an_environment_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("ENV_URL", f"http://127.0.0.1:{free_port()}")
    assert inference.main() == 1
    assert "Failed to connect" in capsys.readouterr().out


def test_a_key_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        inference.main()
    assert ended.value.code == 2
    told = "set OPENAI_API_KEY, OPENROUTER_API_KEY or GEMINI_API_KEY\n"
    assert capsys.readouterr() == ("", told)
