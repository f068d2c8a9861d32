"""One visitor of the standard MCP door: an MCP session, and the environment that it plays in.

Knows no protocol. Guarantees: a session has at most one environment, from its first `begin` on; it
is closed, and its place free, when the session ends, and when nothing was asked for `patience`
seconds. A call in progress is not silence. A session that fell silent may begin again, and its
attempts go on being counted. What the operator has fixed (`Terms`) holds for every session.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ml_trainer_env.models import (
    DEFAULT_TASK_ID,
    TrainingStatus,
)
from ml_trainer_env.server.episode import tools
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session.reset_options import DEFAULT_SEED, Seed
from ml_trainer_env.server.session.waiting import nothing
from ml_trainer_env.server.validation import ActionError, validate
from ml_trainer_env.task_ids import Chosen

BEGIN = "begin_episode"


class BeginEpisode(BaseModel):
    """Arguments of begin_episode."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    task_id: Annotated[
        Chosen, Field(description="what to train; of a family alone the seed chooses an instance")
    ] = DEFAULT_TASK_ID
    seed: Annotated[
        Seed, Field(description="the same task and seed start with the same weights and shuffles")
    ] = DEFAULT_SEED


@dataclass(frozen=True)
class Terms:
    """What an operator fixes for the sessions of this door; None leaves it to them.

    With one episode of a given task and seed, a session cannot choose the best of many attempts.
    """

    task_id: Chosen | None = None
    seed: int | None = None
    episodes: int | None = None  # that one session may begin

    @cached_property
    def arguments(self) -> type[BeginEpisode]:
        """Those of begin_episode: what is fixed has one allowed value, which is the default."""
        fixed: dict[str, Any] = {}
        for name, value in (("task_id", self.task_id), ("seed", self.seed)):
            if value is not None:
                told = BeginEpisode.model_fields[name].description
                fixed[name] = (Annotated[Literal[value], Field(description=told)], value)
        return create_model(BeginEpisode.__name__, __base__=BeginEpisode, **fixed)


ANYTHING = Terms()


class Visitor:
    """All methods are for the event loop. `patience` in seconds; None: silent for ever."""

    def __init__(
        self,
        environment: Callable[[], MLTrainerEnvironment],
        patience: float | None = None,
        terms: Terms = ANYTHING,
    ) -> None:
        self._make_environment = environment
        self._terms = terms
        self._attempts: Counter[tuple[str, int | None]] = Counter()
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
        given = validate(self._terms.arguments, arguments, subject=BEGIN)
        with self._not_silent():
            most = self._terms.episodes
            if most is not None and self._attempts.total() >= most:
                raise ActionError(
                    f"this server lets a session begin {most} episode{'s' if most > 1 else ''}, "
                    "and this session has"
                )
            if self._environment is None:
                self._environment = self._make_environment()
                self._environment.attempts = self._attempts
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
