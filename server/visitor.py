"""One visitor of the standard MCP door: an MCP session, and the environment that it plays in.

Knows no protocol. Guarantees: a session has at most one environment, from its first `begin` on; it
is closed, and its place free, when the session ends, and when nothing was asked for `patience`
seconds. A call in progress is not silence. A session that fell silent may begin again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ml_trainer_env.models import DEFAULT_TASK_ID, TaskId, TrainingStatus
from ml_trainer_env.server import tools
from ml_trainer_env.server.episode import Episode
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.reset_options import DEFAULT_SEED, Seed
from ml_trainer_env.server.validation import ActionError, validate
from ml_trainer_env.server.waiting import nothing

BEGIN = "begin_episode"


class BeginEpisode(BaseModel):
    """Arguments of begin_episode."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    task_id: Annotated[TaskId, Field(description="what to train")] = DEFAULT_TASK_ID
    seed: Annotated[
        Seed, Field(description="the same task and seed start with the same weights and shuffles")
    ] = DEFAULT_SEED


class Visitor:
    """All methods are for the event loop. `patience` in seconds; None: silent for ever."""

    def __init__(
        self, environment: Callable[[], MLTrainerEnvironment], patience: float | None = None
    ) -> None:
        self._make_environment = environment
        self._environment: MLTrainerEnvironment | None = None
        self._patience = patience
        self._calls = 0  # in progress
        self._alarm: asyncio.TimerHandle | None = None
        self._why_none = "no episode has begun"
        self._closed = False

    @property
    def episode(self) -> Episode | None:
        return self._environment.episode if self._environment else None

    async def begin(self, arguments: Mapping[str, Any]) -> TrainingStatus:
        """Begin an episode; an unfinished one is abandoned. Raises `ActionError`."""
        given = validate(BeginEpisode, arguments, subject=BEGIN)
        with self._not_silent():
            if self._environment is None:
                self._environment = self._make_environment()
            opened = await self._environment.reset_async(seed=given.seed, task_id=given.task_id)
            return opened.status

    async def call(
        self, name: str, arguments: Mapping[str, Any], notice: Callable[[], object] = nothing
    ) -> TrainingStatus:
        """Call one of the six tools; `notice` is told of epoch boundaries. Raises `ActionError`."""
        with self._not_silent():
            if self._environment is None or self._environment.episode is None:
                tools.checked(name, arguments)  # a mistake is told first, as at every door
                raise ActionError(f"{self._why_none}: call {BEGIN} first")
            return await self._environment.call_async(name, arguments, notice)

    def close(self) -> None:
        """The session is over. A training in progress stops at its next epoch boundary."""
        self._closed = True
        self._stop_waiting()
        self._leave("the session is closed")

    @contextmanager
    def _not_silent(self) -> Generator[None, None, None]:
        self._stop_waiting()
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            if self._patience and not self._calls and not self._closed:
                reason = f"nothing was asked for {self._patience:g} s, so the episode was closed"
                loop = asyncio.get_running_loop()
                self._alarm = loop.call_later(self._patience, self._leave, reason)

    def _stop_waiting(self) -> None:
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None

    def _leave(self, why: str) -> None:
        """Close the environment, if any, which frees its place."""
        if self._environment:
            self._environment.close()
            self._environment = None
            self._why_none = why
