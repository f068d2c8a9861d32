"""What a language model is asked with: one frozen value, from the environment or a `.env` file.

| variable | default | meaning |
|---|---|---|
| API_BASE_URL | that of the key's provider | any OpenAI-compatible endpoint |
| MODEL_NAME | gpt-4o-mini, or what the provider has | the model |
| ENV_URL | http://localhost:8000 | the environment |
| OPENAI_API_KEY, else OPENROUTER_API_KEY, else GEMINI_API_KEY | | one of them is required |
| HF_TOKEN | | opens a private Hugging Face Space, where ENV_URL is one |
| ML_TRAINER_TOKEN | | the token of the server at ENV_URL, where it asks for one |
| LLM_RPM_LIMIT | 5 | requests in any minute, at most |
| LLM_MAX_RETRIES | 3 | how often a request is repeated |
| LLM_REASONING_EFFORT | minimal | for providers that take it |
| LLM_TASKS | the three classic | what is played: ids, splits and parts of them, with commas |
| LLM_MAX_STEPS_EASY, _MEDIUM, _HARD | 5, 6, 7 | decisions of the model for a task |
| LLM_MAX_STEPS_INSTANCE, _CLUSTER | 12, 24 | for an instance of a family, for a cluster |
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_trainer_env.task_ids import CLASSIC_IDS, TaskId, is_cluster, named
from ml_trainer_env.variables import (
    HttpUrl,
    Secret,
    ServerUrl,
    SettingsError,
    Text,
    explained,
    require_text,
)

DOTENV = Path(".env")
SPACES = ".hf.space"  # where Hugging Face serves Spaces


class LLMSettingsError(SettingsError):
    """A variable is missing or holds what cannot be used; the message names it."""


class Provider(NamedTuple):
    """Who is asked: the endpoint that belongs to a key, and a small model that it has."""

    base_url: str
    model: str
    key: SecretStr


def _named(names: str) -> list[TaskId]:
    """Raises ValueError."""
    return [task_id for name in names.split(",") if name.strip() for task_id in named(name.strip())]


def _are_tasks(names: str) -> str:
    if not _named(names):
        raise ValueError("names no task")
    return names


TaskNames = Annotated[str, AfterValidator(_are_tasks)]


class LLMSettings(BaseSettings):
    """How the model is asked, and for how many decisions."""

    model_config = SettingsConfigDict(
        env_file=DOTENV,
        env_file_encoding="utf-8-sig",  # as some editors mark it
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    api_base_url: HttpUrl | None = None
    model_name: Text | None = None
    env_url: ServerUrl = "http://localhost:8000"
    openai_api_key: Secret = None
    openrouter_api_key: Secret = None
    gemini_api_key: Secret = None
    hf_token: Secret = None
    ml_trainer_token: Secret = None
    llm_rpm_limit: Annotated[int, Field(ge=1)] = 5
    llm_max_retries: Annotated[int, Field(ge=0)] = 3
    llm_reasoning_effort: Text = "minimal"
    llm_tasks: TaskNames = ",".join(CLASSIC_IDS)
    llm_max_steps_easy: Annotated[int, Field(ge=1)] = 5
    llm_max_steps_medium: Annotated[int, Field(ge=1)] = 6
    llm_max_steps_hard: Annotated[int, Field(ge=1)] = 7
    llm_max_steps_instance: Annotated[int, Field(ge=1)] = 12
    llm_max_steps_cluster: Annotated[int, Field(ge=1)] = 24

    @classmethod
    def load(cls) -> Self:
        """Raises `LLMSettingsError`."""
        try:
            require_text(DOTENV)
            return cls()
        except ValidationError as error:
            raise LLMSettingsError(str(explained(error))) from None
        except SettingsError as error:
            raise LLMSettingsError(str(error)) from None

    @model_validator(mode="after")
    def _a_key_is_given(self) -> Self:
        if not self._providers:
            raise ValueError("set OPENAI_API_KEY, OPENROUTER_API_KEY or GEMINI_API_KEY")
        return self

    @property
    def base_url(self) -> str:
        return self.api_base_url or self._providers[0].base_url

    @property
    def model(self) -> str:
        return self.model_name or self._providers[0].model

    @property
    def api_key(self) -> str:
        return self._providers[0].key.get_secret_value()

    @property
    def env_token(self) -> str | None:
        """What the environment asks for. That of Hugging Face is shown to its Spaces only."""
        token = self.ml_trainer_token or (self.hf_token if _is_space(self.env_url) else None)
        return token.get_secret_value() if token else None

    @property
    def tasks(self) -> list[TaskId]:
        """Those that are to be played, in order."""
        return _named(self.llm_tasks)

    def decisions(self, task_id: TaskId) -> int:
        classic = {
            "easy_mnist": self.llm_max_steps_easy,
            "medium_fashion": self.llm_max_steps_medium,
            "hard_cifar": self.llm_max_steps_hard,
        }
        of_instance = (
            self.llm_max_steps_cluster if is_cluster(task_id) else self.llm_max_steps_instance
        )
        return classic.get(task_id, of_instance)

    @property
    def _providers(self) -> list[Provider]:
        """Those that there is a key for, the preferred one first."""
        gemini = "https://generativelanguage.googleapis.com/v1beta/openai/"
        known = (
            ("https://api.openai.com/v1", "gpt-4o-mini", self.openai_api_key),
            ("https://openrouter.ai/api/v1", "openai/gpt-4o-mini", self.openrouter_api_key),
            (gemini, "gemini-2.5-flash", self.gemini_api_key),
        )
        return [Provider(url, model, key) for url, model, key in known if key is not None]


def _is_space(url: str) -> bool:
    address = urlsplit(url)
    return address.scheme in ("https", "wss") and (address.hostname or "").endswith(SPACES)
