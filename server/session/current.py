"""The episode that a session has open, and what is told of it beside the agent's observations."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass, field

from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.episode.played import REMEMBERED, Played
from ml_trainer_env.server.session.saved import Held
from ml_trainer_env.wire import EpisodeState


@dataclass(slots=True)
class Current:
    """An episode and what OpenEnv, and who watches, want to know about it."""

    episode: Episode
    held: Held
    seed: int
    steps: int = 0
    watch_id: str = field(default_factory=lambda: secrets.token_hex(4))
    played: deque[Played] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    @property
    def state(self) -> EpisodeState:
        """As OpenEnv's `state` has it."""
        task, now = self.episode.task, self.episode.now
        trained, left = self.episode.progress(now)
        return EpisodeState(
            episode_id=self.held.episode_id,
            key=self.held.key,
            step_count=self.steps,
            task_id=task.task_id,
            task_version=task.version,
            seed=self.seed,
            engine=now.training.engine,
            current_epoch=trained,
            max_epochs=task.max_epochs,
            remaining_budget=left,
            tool_calls_left=task.tool_calls - now.calls,
            epochs_shared=now.epochs_shared,
            attempt=now.attempt,
            epochs=self.episode.reports,
            done=now.grade is not None,
        )
