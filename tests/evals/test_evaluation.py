"""An evaluation takes for its own what was made in its way and nothing else; records stay whole."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from command import run
from endpoint import Answer, Endpoint, call
from fakes import FakeRunner, Metrics, learning
from live import eventually

from ml_trainer_env import inference, terminal
from ml_trainer_env.agents import records
from ml_trainer_env.agents.llm import agent
from ml_trainer_env.agents.llm.settings import LLMSettings
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.evals import evaluate as evaluation
from ml_trainer_env.evals import plots, results
from ml_trainer_env.evals.progress import Progress
from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.variables import SettingsError

draw = plots.draw
CLI = [sys.executable, "-m", "ml_trainer_env.cli"]
FOLDER = Path("e")


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (name.upper() for name in LLMSettings.model_fields):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "draw", lambda rows, folder: [])  # it takes longer than all the rest


def evaluate(url: str, *more: str, agents: str = "naive", seeds: int = 1) -> str:
    """What the evaluation of an agent on the easy task shows."""
    arguments = ["--url", url, "--agents", agents, "--tasks", "easy_mnist", "--seeds", str(seeds)]
    status, out = run("evaluate", *arguments, "--out", str(FOLDER), *more)
    assert status == 0, out
    return out


def headers() -> list[dict[str, Any]]:
    return [json.loads(path.read_text().splitlines()[0]) for path in records.find(FOLDER)]


# A language model ---------------------------------------------------------------------------------


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    def plays(body: dict[str, Any]) -> Answer:
        fresh = "nothing is configured" in body["messages"][-1]["content"]
        return call("configure_training") if fresh else call("submit_model")

    endpoint = Endpoint()
    endpoint.arrived = plays
    with endpoint.serving():
        yield endpoint


@pytest.fixture
def asked(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the variables of the model, to these values or the usual ones."""

    def set_to(**changed: str) -> None:
        usual = {
            "API_BASE_URL": endpoint.url,
            "MODEL_NAME": "first",
            "OPENAI_API_KEY": "k",
            "LLM_RPM_LIMIT": "100000",
            "LLM_MAX_STEPS_EASY": "5",
            "LLM_REASONING_EFFORT": "low",
        }
        for name, value in (usual | changed).items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("MODEL_NAME", "second", "llm (second)"),
        ("MODEL_NAME", "FIRST", "llm (FIRST)"),
        ("API_BASE_URL", "/", "llm (first, endpoint http"),
        ("LLM_MAX_STEPS_EASY", "6", "llm (first, decisions 6)"),
        ("LLM_REASONING_EFFORT", "high", "llm (first, reasoning effort high)"),
    ],
)
def test_what_changes_how_a_model_plays_makes_it_another_player(
    variable: str, value: str, shown: str, endpoint: Endpoint, asked: Any, url: str
) -> None:
    asked()
    evaluate(url, agents="llm")
    first = len(endpoint.requests)
    asked(**{variable: endpoint.url + value if variable == "API_BASE_URL" else value})
    out = evaluate(url, agents="llm")
    assert len(endpoint.requests) == 2 * first
    assert shown in out
    assert out.count("| llm (") == 2
    assert len(headers()) == 2
    asked()
    out = evaluate(url, agents="llm")
    assert len(endpoint.requests) == 2 * first
    assert out.count("| llm (") == 2


@pytest.mark.parametrize("variable", ["LLM_RPM_LIMIT", "LLM_MAX_RETRIES", "OPENAI_API_KEY"])
def test_what_does_not_change_how_it_plays_does_not(
    variable: str, endpoint: Endpoint, asked: Any, url: str
) -> None:
    asked()
    evaluate(url, agents="llm")
    first = len(endpoint.requests)
    asked(**{variable: "77777"})
    evaluate(url, agents="llm")
    assert len(endpoint.requests) == first


def test_names_that_look_alike_in_a_file_name_do_not_collide(asked: Any, url: str) -> None:
    names = ["a/b", "a_b", "a b", "A/b", "x" * 300, "x" * 301, "модель", "模型", "$x^{$", "a|b"]
    for name in names:
        asked(MODEL_NAME=name)
        evaluate(url, agents="llm")
    assert sorted(header["model"] for header in headers()) == sorted(names)
    _, out = run("report", "--folder", str(FOLDER))
    assert out.count("| llm (") == len(names)
    assert r"llm (a\|b)" in out
    rows = results.rows(results.load(FOLDER).results)
    for name, _ in draw(rows, FOLDER):  # what would be a formula, or has no sign, included
        assert (FOLDER / name).read_bytes().startswith(b"\x89PNG")


def test_an_agent_whose_settings_are_wrong_keeps_all_from_playing(url: str) -> None:
    with pytest.raises(SettingsError, match="set OPENAI_API_KEY"):
        run("evaluate", "--url", url, "--agents", "naive,llm", "--out", "e")
    assert not list(records.find(FOLDER))


# Other ways ---------------------------------------------------------------------------------------

NAIVE = FOLDER / "easy_mnist-naive-0.jsonl"


def rewrite(**header: Any) -> bytes:
    """Let the naive agent's record have another header; gives its bytes."""
    first, *rest = NAIVE.read_text().splitlines()
    NAIVE.write_text("\n".join([json.dumps(json.loads(first) | header), *rest]) + "\n")
    return NAIVE.read_bytes()


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        ({"task_version": 7}, "naive (task version 7)"),
        ({"engine": "of last year"}, "naive (engine 2)"),
        ({"model": "somebody"}, "naive (somebody)"),
        ({"options": {"mood": "good"}}, "naive (mood good)"),
        ({"agent": "my own"}, "| my own |"),
        ({"seed": 3}, "| naive | 2 |"),
    ],
    ids=str,
)
def test_a_record_of_another_way_is_not_taken_for_this_one_and_stays(
    header: dict[str, Any], shown: str, url: str, runner: FakeRunner
) -> None:
    evaluate(url)
    epochs, other = runner.advanced, rewrite(**header)
    out = evaluate(url)
    assert runner.advanced == 2 * epochs
    assert NAIVE.read_bytes() == other
    assert shown in out
    assert len(headers()) == 2
    evaluate(url)
    assert runner.advanced == 2 * epochs


def test_an_engine_is_told_by_its_number(url: str) -> None:
    evaluate(url)
    rewrite(engine="of last year")
    assert "1. fake 2. of last year" in evaluate(url)


def no_end(record: bytes) -> bytes:
    return b"\n".join(record.splitlines()[:-1])


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda record: b"",
    "cut off": no_end,
    "in the middle of a line": lambda record: record[: len(record) // 2],
    "of something else": lambda record: b'{"prompt": "hello", "completion": "world"}\n',
    "not text": lambda record: b"\xff\xfe\x00\n" * 9,
    "deep": lambda record: b"[" * 100_000,
    "twice": lambda record: record + record,
    "another session": lambda record: record.replace(b'"session":0', b'"session":5', 2),
    "never opened": lambda record: b"\n".join(
        line for line in record.splitlines() if b'"kind":"session"' not in line
    ),
    "fork of nobody": lambda record: record.replace(b'"fork_of":null', b'"fork_of":0'),
    "of a huge budget": lambda record: record.replace(
        b'"max_epochs":100,"started"', b'"max_epochs":99999999999,"started"'
    ),
    "grade of another task": lambda record: record.replace(
        b'"grade":{"task_id":"easy_mnist"', b'"grade":{"task_id":"hard_cifar"'
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_record_is_named_and_does_not_count(kind: str, url: str) -> None:
    evaluate(url, seeds=2)
    broken = BROKEN[kind](NAIVE.read_bytes())
    (FOLDER / "foreign.jsonl").write_bytes(broken)
    NAIVE.write_bytes(broken)
    status, out = run("report", "--folder", str(FOLDER))
    assert status == 0
    assert "| naive | 1 |" in out
    for name in ("foreign", "easy_mnist-naive-0"):
        assert f"## Not counted - e/{name}.jsonl: " in out or f" - e/{name}.jsonl: " in out
    assert "| naive | 2 |" in evaluate(url, seeds=2)
    status, out = run("replay", "--url", url, str(FOLDER / "foreign.jsonl"), str(NAIVE))
    assert status == 1
    assert "foreign.jsonl: " in out
    assert f"{NAIVE}: the same, bit for bit" in out


def test_a_folder_of_nothing_else_says_so(url: str) -> None:
    FOLDER.mkdir()
    (FOLDER / "foreign.jsonl").write_text("{}\n")
    (FOLDER / "folder.jsonl").mkdir()
    (FOLDER / "nowhere.jsonl").symlink_to("missing")
    os.mkfifo(FOLDER / "pipe.jsonl")
    status, out = run("report", "--folder", str(FOLDER))
    assert status == 1
    assert "e: no whole record in it e/foreign.jsonl: " in out
    evaluate(url)


def test_a_copy_counts_once(url: str) -> None:
    evaluate(url)
    shutil.copy(NAIVE, FOLDER / "copy of it.jsonl")
    out = evaluate(url)
    assert "| naive | 1 |" in out
    assert "easy_mnist-naive-0.jsonl: a copy of e/copy of it.jsonl" in out


# Duplicates, and several at once ------------------------------------------------------------------


def test_what_is_named_twice_is_played_once(url: str, runner: FakeRunner) -> None:
    out = evaluate(url, "--tasks", "easy_mnist,easy_mnist", agents="naive,nothing,naive")
    assert runner.advanced == 100
    assert out.index("| nothing | 1 |") < out.index("| naive | 1 |")
    status, out = run("evaluate", "--agents", " , ")
    assert status == 2
    assert "names no agent" in out


def quietly(folder: Path, runner: FakeRunner, seeds: int) -> list[evaluation.Failure]:
    def connect() -> LocalSession:
        return LocalSession(MLTrainerEnvironment(runner))

    players = evaluation.contenders(["naive", "nothing", "halving"], ["easy_mnist", "hard_cifar"])
    todo = evaluation.pending(evaluation.jobs(players, seeds, connect), folder)
    progress = Progress(terminal.stdout(), len(todo), 0)
    return evaluation.evaluate(todo, folder, connect, parallel=3, progress=progress)


def test_evaluations_that_share_a_folder_share_the_work(runner: FakeRunner) -> None:
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda _: quietly(FOLDER, runner, 4), range(4)))
    errors = {failure.error for failures in ended for failure in failures}
    assert errors <= {"somebody else is recording it at the moment"}
    assert quietly(FOLDER, runner, 4) == []
    found = results.load(FOLDER)
    assert found.refused == []
    assert len(found.results) == 3 * 2 * 4
    assert runner.advanced == 2 * 4 * (100 + 60)  # each attempt once
    assert not list(FOLDER.glob("*.part"))


# Interrupted --------------------------------------------------------------------------------------


def test_one_that_is_killed_leaves_whole_records_and_goes_on(url: str, runner: FakeRunner) -> None:
    def held_in_the_second(epoch: int, plan: EpochPlan) -> Metrics | None:
        if runner.advanced == 150:
            runner.gate.clear()
        return learning(epoch, plan)

    runner.script = held_in_the_second
    command = [*CLI, "evaluate", "--url", url, "--agents", "naive", "--tasks", "easy_mnist"]
    command += ["--out", str(FOLDER), "--seeds", "3", "--parallel", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        eventually(lambda: not runner.gate.is_set(), timeout=60)
        process.send_signal(signal.SIGKILL)
    runner.gate.set()
    done = results.load(FOLDER)
    assert (done.refused, len(done.results)) == ([], 1)
    assert len(list(FOLDER.glob("*.part"))) == 1
    assert "| naive | 3 |" in evaluate(url, seeds=3)
    assert not list(FOLDER.glob("*.part"))


def test_a_full_disk_is_one_line(url: str) -> None:
    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))

    command = [*CLI, "evaluate", "--url", url, "--tasks", "easy_mnist", "--out", str(FOLDER)]
    command += ["--agents", "naive,expert", "--seeds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=no_room, timeout=100)
    assert done.returncode == 1
    assert "and 3 more failed: [Errno 27] File too large" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert list(records.find(FOLDER)) == []


def test_a_report_is_whole_or_the_one_before(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw", draw)
    evaluate(url)
    before = {path.name: path.read_bytes() for path in FOLDER.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    status, out = run("report", "--folder", str(FOLDER))
    assert (status, "No space left on device" in out) == (1, True)
    assert {path.name: path.read_bytes() for path in FOLDER.iterdir()} == before


# inference.py -------------------------------------------------------------------------------------


def test_runs_of_the_same_second_have_folders_of_their_own(
    asked: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(ENV_URL=url)

    class Noon(inference.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 1, 12)

    monkeypatch.setattr(inference, "datetime", Noon)
    assert inference.main() == inference.main() == 0
    folders = sorted(path.name for path in inference.OUTPUTS.iterdir())
    assert folders == ["20260101-120000-first", "20260101-120000-first-2"]
    assert len(list(records.find(inference.OUTPUTS))) == 6
    assert {r.player.file_name for r in results.load(inference.OUTPUTS).results} == {
        agent.player(LLMSettings.load(), record.task_id).file_name
        for record in results.load(inference.OUTPUTS).results
    }


def test_an_interrupted_run_says_so(
    asked: Any, url: str, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(ENV_URL=url.replace("//", "//me:s3cret@"))

    def interrupting(body: dict[str, Any]) -> Answer:
        signal.raise_signal(signal.SIGINT)
        return call("submit_model")

    endpoint.arrived = interrupting
    assert inference.main() == 130
    out = capsys.readouterr().out
    assert out.rstrip().endswith("interrupted")
    assert "s3cret" not in out


def test_a_run_that_recorded_nothing_leaves_no_folder(asked: Any) -> None:
    asked(ENV_URL="http://127.0.0.1:9")
    assert inference.main() == 1
    assert list(inference.OUTPUTS.iterdir()) == []
