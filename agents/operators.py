"""Operators of a cluster: doing nothing, chance, panic, and the watchdogs that large jobs have.

A watchdog sees what any operator sees, window by window. Its rules are those of the field: a spike
of the loss or of the gradient norm is left by going back and reading past it (PaLM, 2022), who is
much slower than the others is taken out, who does not answer is replaced, and checkpoints are as
often as Young (1974) has them. One of the two asks for a replay before it acts on a spike: what
comes again is of the data, what does not is a host's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean, median, pstdev
from typing import Any, get_args

from ml_trainer_env.agents.attempt import Attempt, Refused, Trial
from ml_trainer_env.cluster_status import ClusterStatus, Window
from ml_trainer_env.events import MICRO_SHARDS, Diagnosis, RankReport
from ml_trainer_env.frozen import forks
from ml_trainer_env.models import MAX_EPOCHS_PER_CALL, TrainingStatus
from ml_trainer_env.task_ids import instance_id

SIGMAS = 6.0
KNOWN = 128  # steps from which a usual one is told
FEWEST = 50  # before anything counts as unusual
SLOW = 0.7  # of the median speed
FAILURES = 300.0  # seconds between two, as an operator expects them
WRITING = 0.4  # seconds, of a checkpoint
STRIKING = 0.5  # nats above the other data shards, and a host's norm over the others'
OPPOSED = -0.1  # agreement below which a host works against the others


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
        while _seen(trial.status).seconds < act.since and trial.status.remaining_budget:
            trial.run(1)
        trial.call(act.tool, **act.arguments)
    train_on(trial)


def panic(attempt: Attempt) -> None:
    """Everything at once, at the first sign of anything: back and past it, without the rank and the
    data shards that look worst, in a new order.
    """
    trial = attempt.begin()
    watch = _Watch()
    acted = False
    while trial.status.remaining_budget:
        seen = _seen(trial.run(1))
        if acted or not (watch.jumped(seen) or seen.incidents or _slowest(seen) is not None):
            continue
        acted = True
        last = seen.windows[-1]
        back = max((each for each in seen.checkpoints if each < seen.step - 25), default=0)
        worst = sorted(range(MICRO_SHARDS), key=lambda shard: -(last.shard_losses[shard] or 0.0))
        rank = max(last.ranks, key=lambda each: each.gradient_norm or math.inf).rank
        _try(trial, "restore_checkpoint", step=back, skip_batches=100)
        _try(trial, "configure_ranks", exclude=[rank])
        _try(trial, "configure_data", quarantine_shards=sorted(worst[:2]), reshuffle=True)
        _try(trial, "configure_training", learning_rate=seen.config.learning_rate)
    trial.call("submit_model")


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
            tool, arguments = _any_act(source, _seen(trial.status))
            _try(trial, tool, **arguments)


def watchdog(attempt: Attempt) -> None:
    """Acts on what it sees."""
    _watch(attempt, replays=False)


def careful(attempt: Attempt) -> None:
    """The watchdog that asks for a replay before it acts on a spike."""
    _watch(attempt, replays=True)


def _watch(attempt: Attempt, *, replays: bool) -> None:
    trial = attempt.begin()
    every = round(math.sqrt(2 * WRITING * FAILURES))
    trial.call("configure_training", checkpoint_every=every)
    watch = _Watch()
    while trial.status.remaining_budget:
        seen = _seen(trial.run(1))
        absent = [each.rank for each in seen.windows[-1].ranks if not each.alive]
        slow = _slowest(seen)
        if absent:
            _try(trial, "configure_ranks", use_spare=absent)
        elif slow is not None:
            _try(trial, "configure_ranks", exclude=sorted({*seen.excluded, slow}))
        elif watch.jumped(seen):
            if replays:
                _after_a_replay(trial, seen)
            else:
                _go_past(trial, seen)
            watch = _Watch()
    trial.call("submit_model")


def _after_a_replay(trial: Trial, seen: ClusterStatus) -> None:
    """Hosts are replaced, data is left out; where neither stands out, back and past it."""
    status = _try(trial, "run_diagnostic", kind="replay")
    finding = _seen(status).finding if status else ()
    window = seen.windows[-1]
    if any("differ" in line for line in finding):
        rank = _suspect(window.ranks)
        if rank is not None:
            _try(trial, "configure_ranks", use_spare=[rank])
        _go_back(trial, seen)
        return
    shards = _striking(window)
    if shards:
        _try(trial, "configure_data", quarantine_shards=shards)
    else:
        _go_past(trial, seen)


def _go_back(trial: Trial, seen: ClusterStatus) -> None:
    _try(trial, "restore_checkpoint", step=max(0, seen.step - 30))


def _go_past(trial: Trial, seen: ClusterStatus) -> None:
    """Before the window, and past what it has read."""
    back = max((each for each in seen.checkpoints if each <= seen.step - 25), default=0)
    _try(trial, "restore_checkpoint", step=back, skip_batches=seen.step - back)


class _Watch:
    """What a usual step looks like, from the last 128."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._norms: list[float] = []

    def jumped(self, seen: ClusterStatus) -> bool:
        """Whether a step of the last window is far above the usual: then none is learned from."""
        losses = [math.inf if each is None else each for each in seen.losses]
        norms = [math.inf if each is None else each for each in seen.gradient_norms]
        found = _far(self._losses, losses) or _far(self._norms, norms)
        if not found:
            self._losses = [*self._losses, *losses][-KNOWN:]
            self._norms = [*self._norms, *norms][-KNOWN:]
        return found


def _far(usual: Sequence[float], now: Sequence[float]) -> bool:
    if len(usual) < FEWEST:
        return False
    return max(now, default=-math.inf) > fmean(usual) + SIGMAS * pstdev(usual)


def _slowest(seen: ClusterStatus) -> int | None:
    """A rank whose speed for its work is below 0.7 of the median."""
    paces = {
        each.rank: each.step_seconds / len(each.shards)
        for each in seen.windows[-1].ranks
        if each.step_seconds is not None and each.shards and each.rank not in seen.excluded
    }
    if len(paces) < 3:
        return None
    slow = max(paces, key=paces.__getitem__)
    return slow if median(paces.values()) / paces[slow] < SLOW else None


def _suspect(ranks: Sequence[RankReport]) -> int | None:
    """The rank that works against the others, or whose gradients are much larger."""
    there = [each for each in ranks if each.agreement is not None and each.gradient_norm]
    if len(there) < 3:
        return None
    worst = min(there, key=lambda each: each.agreement or 0.0)
    if (worst.agreement or 0.0) < OPPOSED:
        return worst.rank
    largest = max(there, key=lambda each: each.gradient_norm or 0.0)
    usual = median(each.gradient_norm or 0.0 for each in there)
    return largest.rank if (largest.gradient_norm or 0.0) > (1 + STRIKING) * usual else None


def _striking(window: Window) -> list[int]:
    """Data shards whose loss is far above the median; at most four."""
    losses = {n: loss for n, loss in enumerate(window.shard_losses) if loss is not None}
    usual = median(losses.values()) if losses else 0.0
    found = sorted(
        (shard for shard, loss in losses.items() if loss > usual + STRIKING),
        key=lambda shard: -losses[shard],
    )
    return sorted(found[:4])


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


def train_on(trial: Trial) -> None:
    """To the deadline, and submit."""
    while trial.status.remaining_budget and not trial.status.done:
        trial.run(min(MAX_EPOCHS_PER_CALL, trial.status.remaining_budget))
    if not trial.status.done:
        trial.call("submit_model")


def _try(trial: Trial, tool: str, **arguments: Any) -> TrainingStatus | None:
    """None where it was refused: then that is that."""
    try:
        return trial.call(tool, **arguments)
    except Refused:
        return None


def _seen(status: TrainingStatus) -> ClusterStatus:
    assert status.cluster is not None, "an operator's task has a cluster"
    return status.cluster
