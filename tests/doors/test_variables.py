"""Variables that cannot be used: one line that names them, status 2, and never a secret."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, error
from hypothesis import given
from hypothesis import strategies as st

from ml_trainer_env import cli, inference
from ml_trainer_env.agents.llm.settings import LLMSettings
from ml_trainer_env.server import app, datasets, settings
from ml_trainer_env.server.doors.mcp import stdio as mcp_stdio
from ml_trainer_env.server.settings import Settings
from ml_trainer_env.variables import SettingsError, checked_url, one_line, secret, server_url

SECRET = "s3cret-value"
UNSENDABLE = [f"{SECRET}\u00e9", f"{SECRET}\x01", f"{SECRET}\r\nX: y", f"\u201c{SECRET}\u201d"]
SECRETS = ["OPENAI_API_KEY", "OPENROUTER_API_KEY", "GEMINI_API_KEY", "HF_TOKEN", "ML_TRAINER_TOKEN"]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """None of the variables, nothing read of them, and a folder to work in."""
    for name in [*LLMSettings.model_fields, *(f"ml_trainer_{f}" for f in Settings.model_fields)]:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    settings.current.cache_clear()
    yield
    settings.current.cache_clear()
    signal.signal(signal.SIGTERM, handler)


def command(*arguments: str) -> Callable[[], object]:
    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["ml-trainer", *arguments])
            cli.main()

    return run


SERVERS: dict[str, Callable[[], object]] = {
    "uvicorn": lambda: app.app,
    "server": lambda: app.main([]),
    "mcp": mcp_stdio.main,
}
AGENTS: dict[str, Callable[[], object]] = {
    "inference": inference.main,
    "evaluate": command("evaluate", "--agents", "llm"),
}


def refusal(program: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said before the program ends."""
    with pytest.raises(SystemExit) as ended:
        program()
    assert ended.value.code == 2
    assert ended.value.__cause__ is None
    assert ended.value.__suppress_context__
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert SECRET not in err
    return err


@pytest.mark.parametrize("program", SERVERS.values(), ids=SERVERS.keys())
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("SESSION_TIMEOUT", value) for value in ("abc", "-1", "nan", "inf")),
        *(("MAX_SESSIONS", value) for value in ("0", "many", "1" * 5000)),
        *((name, "-1") for name in ("MAX_WAITING", "SESSION_MB", "SNAPSHOT_MB", "STATE_MB")),
        *(("THREADS", "0"), ("RUNNER", "cloud"), ("SHARING", "maybe"), ("VERIFY_SHARED", "2")),
        *(("PRECISION", "fp16"), ("STATE_DIR", "a-file/states"), ("DATA_DIR", "a-file/data")),
        *(("RAY_ADDRESS", "head"), ("RAY_ADDRESS", "head:"), ("RAY_ENGINE", "typo")),
        *(("ORIGINS", value) for value in ("*", "null", "example.com", "https://*.example.com")),
        *(("ORIGINS", f"https://{part}") for part in ("a b", "x/path", "u:p@x", "x?y", "x:port")),
        *(("TOKEN", value) for value in UNSENDABLE),
    ],
)
def test_a_server_says_which_variable_it_cannot_use(
    program: Callable[[], object],
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("a-file").touch()
    monkeypatch.setenv(f"ML_TRAINER_{name}", value)
    assert refusal(program, capsys).startswith(f"ML_TRAINER_{name}: ")


@pytest.mark.parametrize("program", AGENTS.values(), ids=AGENTS.keys())
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in SECRETS for value in UNSENDABLE),
        *(("LLM_RPM_LIMIT", value) for value in ("0", "-1", "5.5", "many", "nan")),
        *((f"LLM_{name}", "x") for name in ("MAX_RETRIES", "MAX_STEPS_EASY", "MAX_STEPS_HARD")),
        *(("LLM_REASONING_EFFORT", "a\x01"), ("MODEL_NAME", "a\nb"), ("MODEL_NAME", "a\udc80")),
        *((name, "localhost:8000") for name in ("ENV_URL", "API_BASE_URL")),
        *((name, f"http://u:{SECRET}@") for name in ("ENV_URL", "API_BASE_URL")),
        *((name, f"ftp://u:{SECRET}@x") for name in ("ENV_URL", "API_BASE_URL")),
        *((name, f"http://x:99999/{SECRET}") for name in ("ENV_URL", "API_BASE_URL")),
        *(
            ("API_BASE_URL", value)
            for value in ("http://..", "ws://x/v1", "http://a b", "http://[")
        ),
        *((f"OPENAI_{name}", SECRET + "\u00e9") for name in ("ORG_ID", "CUSTOM_HEADERS")),
    ],
)
def test_whoever_plays_is_told_which_variable_cannot_be_used(
    program: Callable[[], object],
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    assert refusal(program, capsys).startswith(f"{name}: ")
    assert not list(Path().iterdir())  # nothing was begun


@pytest.mark.parametrize("program", AGENTS.values(), ids=AGENTS.keys())
@pytest.mark.parametrize("content", ["a=b".encode("utf-16"), "a=b".encode("utf-16-le"), b"a=\xe9"])
def test_a_dotenv_that_is_not_in_utf_8_is_named(
    program: Callable[[], object], content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(".env").write_bytes(content)
    assert refusal(program, capsys) == ".env: must be text in UTF-8\n"


def test_a_dotenv_that_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    Path(".env").touch()
    monkeypatch.setattr(Path, "read_text", refused)
    assert refusal(inference.main, capsys) == ".env: cannot be read: Permission denied\n"


def test_a_dotenv_may_begin_with_a_mark_of_its_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    Path(".env").write_text(f"OPENAI_API_KEY= {SECRET} \n", encoding="utf-8-sig")
    assert LLMSettings.load().api_key == SECRET


@pytest.mark.parametrize("name", ["demo", "evaluate"])
@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", f"http://{SECRET}@", "http://x:0"])
def test_a_url_that_is_none_is_refused_by_its_option(
    name: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(command(name, "--url", url), capsys).startswith("--url: must be a URL")


@pytest.mark.parametrize("value", UNSENDABLE)
def test_so_is_a_token_of_the_command_line(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ML_TRAINER_TOKEN", value)
    for name in ("demo", "evaluate"):
        told = refusal(command(name, "--url", "http://localhost:9"), capsys)
        assert told.startswith("ML_TRAINER_TOKEN: ")


@pytest.mark.parametrize("port", ["99999", "-1", "65536"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(lambda: app.main([f"--port={port}"]), capsys).startswith("--port: ")


@pytest.mark.parametrize("program", SERVERS.values(), ids=SERVERS.keys())
def test_a_processor_without_bf16_is_known_at_once(
    program: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ML_TRAINER_PRECISION", "bf16")
    monkeypatch.setattr(settings, "_has_bf16", lambda: False)
    assert refusal(program, capsys).startswith("ML_TRAINER_PRECISION: bf16 needs")


def test_a_folder_for_the_data_is_needed_only_where_they_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a-file").touch()
    monkeypatch.setenv("ML_TRAINER_DATA_DIR", "a-file/data")
    told = "ML_TRAINER_DATA_DIR: cannot write in "
    assert refusal(lambda: datasets.main([]), capsys).startswith(told)


# Programs as they are called: before OpenEnv, whose page makes an HTTP client when it is imported

PROGRAMS = {
    "uvicorn": ["uvicorn", "ml_trainer_env.server.app:app"],
    "server": ["ml_trainer_env.server.app"],
    "mcp": ["ml_trainer_env.server.doors.mcp.stdio"],
    "data": ["ml_trainer_env.server.datasets"],
    "inference": ["ml_trainer_env.inference"],
    "llm-demo": ["ml_trainer_env.llm_demo"],
    "demo": ["ml_trainer_env.cli", "demo"],
    "evaluate": ["ml_trainer_env.cli", "evaluate", "--in-process"],
    "serve": ["ml_trainer_env.cli", "serve"],
}
OF_CLIENTS = {
    "ALL_PROXY": f"socks5://u:{SECRET}@127.0.0.1:1",
    "https_proxy": f"ftp://u:{SECRET}@x",
    "HTTP_PROXY": f"http://u:{SECRET}#@x:1",
    "SSL_CERT_FILE": "/no/such/file",
}


@pytest.mark.parametrize(
    ("program", "name"),
    [
        *((program, "ALL_PROXY") for program in PROGRAMS),
        *(("uvicorn", name) for name in OF_CLIENTS),
    ],
)
def test_proxies_and_certificates_that_cannot_be_used_are_named(program: str, name: str) -> None:
    environment = os.environ | {name: OF_CLIENTS[name]}
    arguments = [sys.executable, "-m", *PROGRAMS[program]]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert SECRET not in done.stderr


# Values -------------------------------------------------------------------------------------------


def token_of(text: str) -> str | SettingsError:
    try:
        token = Settings.from_environment({"ML_TRAINER_TOKEN": text}).token
    except SettingsError as error:
        return error
    return token.get_secret_value() if token else ""


@given(st.text(min_size=4))
def test_a_secret_is_sent_as_it_is_or_refused_without_showing_it(text: str) -> None:
    token = token_of(text)
    if isinstance(token, str):
        assert token == text.strip()
        assert f"Bearer {token}".isascii()
    else:
        assert str(token) == str(token_of("\u00e9"))
        assert token.__suppress_context__


@pytest.mark.parametrize("value", UNSENDABLE)
def test_nor_by_pydantics_own_error(value: str) -> None:
    for given_to in (Settings, LLMSettings):
        with pytest.raises(ValueError, match="token") as raised:
            given_to.model_validate({"token": value, "ml_trainer_token": value})
        assert SECRET not in str(raised.value)


def test_an_empty_secret_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for empty in ("", " ", "\n"):
        monkeypatch.setenv("ML_TRAINER_TOKEN", empty)
        assert secret("ML_TRAINER_TOKEN") is None
        assert Settings.from_environment().token is None
        assert LLMSettings.load().env_token is None
    monkeypatch.setenv("ML_TRAINER_TOKEN", f" {SECRET}\n")
    assert secret("ML_TRAINER_TOKEN") == SECRET
    assert LLMSettings.load().env_token == SECRET


def test_origins_are_those_that_browsers_send() -> None:
    given_ = "https://A.example:443, http://b.example:80/,http://c:8080,chrome-extension://x,http://[::1]:3"
    origins = Settings.from_environment({"ML_TRAINER_ORIGINS": given_}).origins
    assert origins == (
        *("https://a.example", "http://b.example", "http://c:8080"),
        *("chrome-extension://x", "http://[::1]:3"),
    )


@pytest.mark.parametrize(
    "url",
    ["http://x", "https://x/v1", " http://[::1]:80/v1\n", "http://u:p@x", "HTTP://b\u00fccher"],
)
def test_urls(url: str) -> None:
    assert checked_url(url) == url.strip()
    assert server_url("wss://x") == "wss://x"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to http://u:p@x/y: no", "to http://x/y: no"),
        ("to http://u:p/w@x: no", "to http://x: no"),
        (f"{SECRET}, ({SECRET})", "[redacted], ([redacted])"),
        ("a\n\tb \x1b[2J\u202e", "a b [2J"),
        ("x" * 500, "x" * 397 + "..."),
        ("ok, k is k", "ok, [redacted] is [redacted]"),
    ],
)
def test_what_is_told_is_one_line_without_secrets(text: str, shown: str) -> None:
    assert one_line(text, SECRET, "k", "") == shown


# The command --------------------------------------------------------------------------------------


def test_an_evaluation_reports_an_endpoint_that_fails(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Endpoint(otherwise=error(401, f"wrong key {SECRET}")).serving() as endpoint:
        monkeypatch.setenv("API_BASE_URL", endpoint.url)
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        arguments = ["--url", url, "--agents", "llm,naive", "--tasks", "easy_mnist", "--seeds", "1"]
        with pytest.raises(SystemExit) as ended:
            command("evaluate", *arguments)()
    assert ended.value.code == 1
    out = capsys.readouterr().out
    [told] = [line for line in out.splitlines() if "wrong key [redacted]" in line]
    assert "easy_mnist-llm-" in told
    assert " failed" in told
    assert "| naive | 1 |" in out
    assert "1 of 2 attempts failed" in out
