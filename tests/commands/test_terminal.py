"""Every command writes whatever is at the other end: no character and no closed pipe fails it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, message
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ml_trainer_env import cli, inference, terminal
from ml_trainer_env.agents import records
from ml_trainer_env.agents.llm.settings import LLMSettings
from ml_trainer_env.evals import plots

CLI = [sys.executable, "-m", "ml_trainer_env.cli"]
ENCODINGS = ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"]
STRANGE = "naïve – 日本 🎉 \ud800 × [/red] [b"


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in (name.upper() for name in LLMSettings.model_fields):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


in_any_encoding = pytest.mark.parametrize("encoding", ENCODINGS)


@contextmanager
def printing(encoding: str) -> Iterator[Callable[[], str]]:
    """Standard output has this encoding; yields what gives all that was printed."""
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding, errors="strict") as stream, redirect_stdout(stream):

        def text() -> str:
            stream.flush()
            return written.getvalue().decode(encoding)

        yield text


def ml_trainer(*arguments: str) -> None:
    """The command, in this process."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.MonkeyPatch.context() as changed:
            changed.setattr(sys, "argv", ["ml-trainer", *arguments])
            with pytest.raises(SystemExit) as ended:
                cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 0


@in_any_encoding
def test_whatever_is_written_takes_any_character(encoding: str) -> None:
    with printing(encoding) as printed:
        console = terminal.stdout()
        table = Table(STRANGE, title=STRANGE)
        table.add_row("x" * 300, STRANGE)
        console.print(table, STRANGE, style="bold")
        console.rule(STRANGE)
        column = TextColumn("{task.description}", markup=False)
        with console.status(Text(STRANGE)), Progress(column, console=console) as bars:
            bars.add_task(STRANGE)
        print(STRANGE)  # what a library prints, too
        assert "na" in printed()


def test_an_output_of_another_kind_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        terminal.stdout().print(STRANGE)


@in_any_encoding
def test_the_demo_is_shown(encoding: str, url: str) -> None:
    with printing(encoding) as printed:
        ml_trainer("demo", "--tasks", "easy_mnist", "--url", url)
        assert "Grade of easy_mnist" in printed()


@in_any_encoding
def test_evaluations_and_records_are_shown(
    encoding: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "draw", lambda rows, folder: [])
    folder = Path("é日")
    with printing(encoding) as printed:
        ml_trainer("evaluate", "--url", url, "--agents", "nothing", "--seeds", "1", "--out", "é日")
        [first, *_] = records.find(folder)
        text = first.read_text(encoding="utf-8")
        text = text.replace('"agent":"nothing","model":null', '"agent":"llm","model":"日本 é"', 1)
        first.write_text(text, encoding="utf-8")
        (folder / "\udcff.jsonl").touch()  # the byte 0xff, which is no UTF-8
        ml_trainer("report", "--folder", "é日")
        ml_trainer("replay", "--url", url, str(first))
        assert "the same, bit for bit" in printed()
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "| llm (日本 é) | 1 |" in page
    assert "?.jsonl: has 0 lines" in page


@in_any_encoding
def test_help_is_shown(encoding: str) -> None:
    with printing(encoding) as printed:
        for command in ([], ["evaluate"], ["data", "fetch"]):
            ml_trainer(*command, "--help")
        assert "Usage: " in printed()


@in_any_encoding
def test_what_a_model_says_is_shown(
    encoding: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "日本 é [/red] \x1b[2J"
    endpoint = Endpoint(otherwise=message(said, ("configure_training", '{"日": "é"}')))
    with endpoint.serving(), printing(encoding) as printed:
        for name, value in {
            "ENV_URL": url,
            "API_BASE_URL": endpoint.url,
            "OPENAI_API_KEY": "k",
            "MODEL_NAME": "модель/é[/b]",
            "LLM_RPM_LIMIT": "100000",
        }.items():
            monkeypatch.setenv(name, value)
        assert inference.main() == 0
        assert "Summary" in printed()
        assert "\x1b" not in printed()
    kept = [records.read(path) for path in records.find(inference.OUTPUTS)]
    assert {record.header.model for record in kept} == {"модель/é[/b]"}


# Processes ----------------------------------------------------------------------------------------


def process(*arguments: str, **environment: str) -> str:
    """What a command prints that succeeds without a word of trouble."""
    changed = {**os.environ, **environment}
    done = subprocess.run([*CLI, *arguments], capture_output=True, env=changed, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode("ascii")


def test_a_process_writes_in_the_encoding_of_its_environment(url: str) -> None:
    shown = process("demo", "--tasks", "easy_mnist", "--url", url, PYTHONIOENCODING="ascii")
    assert "Grade of easy_mnist" in shown
    shown = process("data", "status", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert "cifar10" in shown


def without_reader(*arguments: str) -> tuple[int, str]:
    """Exit status and standard error of a command that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*CLI, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["--help", "report"])
def test_a_reader_that_went_away_ends_it_quietly(command: str) -> None:
    assert without_reader(command) == (1, "")


def test_an_evaluation_that_nobody_reads_stops_and_loses_no_attempt(url: str) -> None:
    arguments = ["evaluate", "--url", url, "--agents", "naive", "--seeds", "400", "--out", "e"]
    status, said = without_reader(*arguments)
    assert (status, said) == (130, "")  # like Ctrl-C
    kept = [records.read(path) for path in records.find(Path("e"))]
    assert 1 <= len(kept) < 400


def test_a_closed_output_is_no_error() -> None:
    command = ["sh", "-c", f"{' '.join(CLI)} --help >&-"]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_is_shown_is_the_text_itself(capsys: Any) -> None:
    terminal.stdout().print("[bold]a[/b] :smile: 12")
    assert capsys.readouterr().out == "[bold]a[/b] :smile: 12\n"
    assert terminal.plain("\x1b[2Ja\tb\r\n\ud800日\x9b") == "?[2Ja\tb?\n?日?"


def test_the_console_is_as_wide_as_the_tables(capsys: Any) -> None:
    terminal.stdout().print("x" * 1000)
    assert max(map(len, capsys.readouterr().out.splitlines())) == terminal.WIDTH
