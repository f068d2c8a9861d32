"""What an agent does and how it decides, in the smallest words. Imports `models` alone."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from ml_trainer_env.models import CurrentConfig, TrainingStatus


class Move(NamedTuple):
    """One tool call."""

    tool: str
    arguments: dict[str, Any]


class Policy(Protocol):
    """Plays one session: the status after the last call (at first: after reset) -> next call."""

    def __call__(self, status: TrainingStatus) -> Move: ...


COOLING = 1 / 3  # of the learning rate, after a divergence

SUBMIT = Move("submit_model", {})


def configure(**options: Any) -> Move:
    """Set these options of `TrainingConfig`."""
    return Move("configure_training", options)


def run(epochs: int) -> Move:
    """Train."""
    return Move("run_epochs", {"num_epochs": epochs})


def rate(new_lr: float) -> Move:
    """Change the learning rate of the next epoch."""
    return Move("adjust_learning_rate", {"new_lr": new_lr})


def cooled(config: CurrentConfig) -> Move:
    """The cure for a divergence: the rate that was too high goes down, and its schedule with it."""
    return rate(config.learning_rate_in_force * COOLING)
