"""Operators of a cluster that need no wit: doing nothing, chance, panic; and one who knows."""

from __future__ import annotations

import math
import random
from typing import Any, get_args

from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.watching import (
    Watch,
    attempted,
    goes_on,
    seen_of,
    slowest,
    submit,
    train_on,
)
from ml_trainer_env.cluster_status import ClusterStatus
from ml_trainer_env.events import MICRO_SHARDS, Diagnosis
from ml_trainer_env.frozen import forks
from ml_trainer_env.task_ids import instance_id


def nothing(attempt: Attempt) -> None:
    """Trains on to the deadline, whatever happens."""
    trial = attempt.begin()
    train_on(trial)


def oracle(attempt: Attempt) -> None:
    """Does what is known to be the best remedy, when it is due: knowledge that no agent has."""
    of = instance_id(attempt.task_id)
    assert of is not None
    trial = attempt.begin()
    for act in forks()[of.split, of.index].best:
        while seen_of(trial.status).seconds < act.since and goes_on(trial):
            trial.run(1)
        trial.call(act.tool, **act.arguments)
    train_on(trial)


def panic(attempt: Attempt) -> None:
    """Everything at once, at the first sign of anything: back and past it, without the rank and the
    data shards that look worst, in a new order.
    """
    trial = attempt.begin()
    watch = Watch()
    acted = False
    while goes_on(trial):
        seen = seen_of(trial.run(1))
        if acted or not (watch.jumped(seen) or seen.incidents or slowest(seen) is not None):
            continue
        acted = True
        last = seen.windows[-1]
        back = max((each for each in seen.checkpoints if each < seen.step - 25), default=0)
        worst = sorted(range(MICRO_SHARDS), key=lambda shard: -(last.shard_losses[shard] or 0.0))
        rank = max(last.ranks, key=lambda each: each.gradient_norm or math.inf).rank
        attempted(trial, "restore_checkpoint", step=back, skip_batches=100)
        attempted(trial, "configure_ranks", exclude=[rank])
        attempted(trial, "configure_data", quarantine_shards=sorted(worst[:2]), reshuffle=True)
        attempted(trial, "configure_training", learning_rate=seen.config.learning_rate)
    submit(trial)


def chance(attempt: Attempt) -> None:
    """Any tool with any arguments that exist, training on half of the time."""
    source = random.Random(f"{attempt.task_id} {attempt.seed}")
    trial = attempt.begin()
    while not trial.status.done:
        if not trial.status.remaining_budget:
            trial.call("submit_model")
        elif source.random() < 0.5:
            trial.run(source.randint(1, 4))
        else:
            tool, arguments = _any_act(source, seen_of(trial.status))
            attempted(trial, tool, **arguments)


def _any_act(source: random.Random, seen: ClusterStatus) -> tuple[str, dict[str, Any]]:
    ranks = len(seen.windows[-1].ranks) if seen.windows else 4
    acts: list[tuple[str, dict[str, Any]]] = [
        ("restore_checkpoint", {"step": seen.step, "skip_batches": source.randint(0, 100)}),
        ("configure_ranks", {"exclude": [source.randrange(ranks)]}),
        ("configure_ranks", {"use_spare": [source.randrange(ranks)]}),
        ("configure_data", {"quarantine_shards": [source.randrange(MICRO_SHARDS)]}),
        ("configure_data", {"reshuffle": True}),
        ("run_diagnostic", {"kind": source.choice(get_args(Diagnosis))}),
        ("configure_training", {"learning_rate": 10 ** source.uniform(-3.5, -1.5)}),
        ("toggle_augmentation", {"enabled": source.random() < 0.5}),
    ]
    return source.choice(acts)
