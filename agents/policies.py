"""The simple agents: doing nothing, chance, the usual first try, and the reference."""

from __future__ import annotations

import random
from typing import Any, get_args

from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.moves import SUBMIT, Move, Policy, configure, cooled, rate, run
from ml_trainer_env.agents.scripted import scripted
from ml_trainer_env.models import (
    MAX_EPOCHS_PER_CALL,
    BatchSize,
    Optimizer,
    Schedule,
    TrainingConfig,
    TrainingStatus,
)

PIECE = 5  # epochs a call, so that records show the curve
NAIVE = TrainingConfig(optimizer="adam", learning_rate=0.001, batch_size=64)


def follow(attempt: Attempt, policy: Policy) -> None:
    """One session to its end, as `policy` decides."""
    trial = attempt.begin()
    while not trial.status.done:
        move = policy(trial.status)
        trial.call(move.tool, **move.arguments)


def nothing(attempt: Attempt) -> None:
    """Submits the network as it is given."""
    follow(attempt, lambda status: SUBMIT)


def naive(attempt: Attempt) -> None:
    """The usual first try: adam at 0.001, nothing else, the whole budget."""
    follow(attempt, playing(NAIVE, PIECE))


def reference(attempt: Attempt) -> None:
    """The best recipe that the calibration found for the task: knowledge that no agent has."""
    follow(attempt, scripted)


def chance(attempt: Attempt) -> None:
    """Any tool with any arguments, until it happens to submit."""
    source = random.Random(f"{attempt.task_id} {attempt.seed}")

    def move(status: TrainingStatus) -> Move:
        return _any_move(source, status, trained=status.remaining_budget < attempt.budget)

    follow(attempt, move)


def playing(recipe: TrainingConfig, piece: int = MAX_EPOCHS_PER_CALL) -> Policy:
    """The recipe to the end of the budget, `piece` epochs a call; after a divergence at a third of
    the rate.
    """
    configured = False

    def move(status: TrainingStatus) -> Move:
        nonlocal configured
        if not configured:
            configured = True
            return configure(**recipe.model_dump(exclude_unset=True))
        if status.is_diverged and status.current_config:
            return cooled(status.current_config)
        if status.remaining_budget == 0:
            return SUBMIT
        return run(min(piece, status.remaining_budget))

    return move


def _any_move(source: random.Random, status: TrainingStatus, *, trained: bool) -> Move:
    """Uniform over the tools that may be called here, and over what they take; rates and decay
    log-uniform, as in a random search.

    Submitting a network that it has not trained is left to `nothing`.
    """
    options: dict[str, Any] = {
        "optimizer": source.choice(get_args(Optimizer)),
        "learning_rate": 10 ** source.uniform(-5, 1),
        "batch_size": source.choice(get_args(BatchSize)),
        "weight_decay": 10 ** source.uniform(-6, 0),
        "dropout": source.uniform(0, 0.5),
        "lr_schedule": source.choice(get_args(Schedule)),
        "warmup_epochs": source.randint(0, 20),
        "augmentation": source.random() < 0.5,
        "augmentation_strength": source.random(),
    }
    chosen = source.sample(sorted(options), source.randint(1, len(options)))
    changed = configure(**{name: options[name] for name in chosen})
    if status.current_config is None:
        return changed
    moves = [
        changed,
        rate(options["learning_rate"]),
        Move(
            "toggle_augmentation",
            {"enabled": options["augmentation"], "strength": options["augmentation_strength"]},
        ),
    ]
    if status.remaining_budget and not status.is_diverged:
        moves.append(run(source.randint(1, MAX_EPOCHS_PER_CALL)))
    if trained:
        moves.append(SUBMIT)
    return source.choice(moves)
