"""What a language model is asked with: keys and their providers, defaults, `.env`, bad values."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_trainer_env.agents.llm.settings import LLMSettings, LLMSettingsError
from ml_trainer_env.task_ids import CLASSIC_IDS


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables and no .env of whoever runs the tests."""
    for name in LLMSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("env_url", "sent"),
    [
        ("https://someone-trainer.hf.space", "hf"),
        ("http://someone-trainer.hf.space", None),  # in clear text
        ("https://hf.space.evil.example", None),
        ("http://localhost:8000", None),
    ],
)
def test_hugging_faces_token_is_shown_to_its_spaces_only(env_url: str, sent: str | None) -> None:
    given = {"env_url": env_url, "hf_token": "hf", "openai_api_key": "k"}
    assert LLMSettings.model_validate(given).env_token == sent
    own = LLMSettings.model_validate({**given, "ml_trainer_token": "own"})
    assert own.env_token == "own"


def test_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    loaded = LLMSettings.load()
    assert (loaded.base_url, loaded.model) == ("https://api.openai.com/v1", "gpt-4o-mini")
    assert loaded.env_url == "http://localhost:8000"
    assert (loaded.llm_rpm_limit, loaded.llm_max_retries) == (5, 3)
    assert loaded.llm_reasoning_effort == "minimal"
    assert [loaded.decisions(task_id) for task_id in CLASSIC_IDS] == [5, 6, 7]


@pytest.mark.parametrize(
    ("keys", "key", "host"),
    [
        ("OPENAI_API_KEY OPENROUTER_API_KEY GEMINI_API_KEY", "OPENAI_API_KEY", "api.openai.com"),
        ("OPENROUTER_API_KEY GEMINI_API_KEY", "OPENROUTER_API_KEY", "openrouter.ai"),
        ("GEMINI_API_KEY", "GEMINI_API_KEY", "generativelanguage.googleapis.com"),
    ],
)
def test_a_fallback_key_selects_its_provider(
    keys: str, key: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in keys.split():
        monkeypatch.setenv(name, f"value of {name}")
    loaded = LLMSettings.load()
    assert loaded.api_key == f"value of {key}"
    assert f"//{host}/" in loaded.base_url
    monkeypatch.setenv("API_BASE_URL", "http://elsewhere/v1")
    assert LLMSettings.load().base_url == "http://elsewhere/v1"


def test_a_dotenv_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("GEMINI_API_KEY=k\nLLM_RPM_LIMIT=9\nMODEL_NAME=a\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("MODEL_NAME", "b")
    loaded = LLMSettings.load()
    assert (loaded.llm_rpm_limit, loaded.model, loaded.api_key) == (9, "b", "k")


@pytest.mark.parametrize("variable", ["LLM_RPM_LIMIT", "LLM_MAX_RETRIES", "LLM_MAX_STEPS_HARD"])
def test_a_value_that_cannot_be_used_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv(variable, "-1")
    with pytest.raises(LLMSettingsError, match=variable):
        LLMSettings.load()


def test_keys_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "very secret")
    assert "very secret" not in f"{LLMSettings.load()!r}"


def test_tasks_are_named_by_ids_splits_and_parts_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a")
    assert LLMSettings.load().tasks == ["easy_mnist", "medium_fashion", "hard_cifar"]
    monkeypatch.setenv("LLM_TASKS", "hard_cifar, cluster/eval/3-4")
    assert LLMSettings.load().tasks == ["hard_cifar", "cluster/eval/3", "cluster/eval/4"]
    assert LLMSettings.load().decisions("cluster/eval/3") == 24
    for wrong in ("nothing", ",", "cluster/eval/80"):
        monkeypatch.setenv("LLM_TASKS", wrong)
        with pytest.raises(LLMSettingsError, match="LLM_TASKS"):
            LLMSettings.load()
