"""A chat with a scripted endpoint, whose time passes only by sleeping."""

from __future__ import annotations

from pyrate_limiter import Duration, InMemoryBucket, Rate

from ml_trainer_env.agents.llm.chat import Chat
from ml_trainer_env.agents.llm.settings import LLMSettings

KEY = "sk-a/very+secret key"
ASKED: list[dict[str, str]] = [{"role": "user", "content": "what next?"}]


class Clock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


class Bucket(InMemoryBucket):
    """A bucket that goes by `clock`."""

    def __init__(self, limit: int, clock: Clock) -> None:
        super().__init__([Rate(limit, Duration.MINUTE)])
        self._seconds = clock

    def now(self) -> int:
        return round(1000 * self._seconds.seconds)


def chat_with(endpoint_url: str, clock: Clock, limit: int = 1000, retries: int = 3) -> Chat:
    """Its settings are these, whatever `.env` and the environment say."""
    given = {"api_base_url": endpoint_url, "openai_api_key": KEY, "llm_max_retries": retries}
    settings = LLMSettings.model_validate(given)
    return Chat(settings, bucket=Bucket(limit, clock), sleep=clock.sleep)
