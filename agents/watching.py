"""What an operator of a cluster makes of what it sees: pure, but for the calls at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median, pstdev
from typing import Any

from ml_trainer_env.agents.attempt import Refused, Trial
from ml_trainer_env.cluster_status import ClusterStatus, Window
from ml_trainer_env.events import RankReport
from ml_trainer_env.models import MAX_EPOCHS_PER_CALL, TrainingStatus

SIGMAS = 6.0
KNOWN = 128  # steps from which a usual one is told
FEWEST = 50  # before anything counts as unusual
SLOW = 0.7  # of the median speed
STRIKING = 0.4  # nats above the other data shards
LARGE = 1.4  # times the gradient norm of the others
OPPOSED = -0.08  # agreement below which a host works against the others
RISEN = 0.03  # nats of the validation loss above the lowest
MOST_OUT = 4  # data shards


class Watch:
    """What a usual step looks like, from the last 128; `steps` that are not make a jump."""

    def __init__(self, steps: int = 1) -> None:
        self._steps = steps
        self._losses: list[float] = []
        self._norms: list[float] = []

    def jumped(self, seen: ClusterStatus) -> bool:
        """Whether steps of the last window are far above the usual: then none is learned from."""
        losses = [math.inf if each is None else each for each in seen.losses]
        norms = [math.inf if each is None else each for each in seen.gradient_norms]
        far = max(_far(self._losses, losses), _far(self._norms, norms))
        found = far >= max(1, min(self._steps, len(losses)))  # a short window has few
        if not found:
            self._losses = [*self._losses, *losses][-KNOWN:]
            self._norms = [*self._norms, *norms][-KNOWN:]
        return found


def _far(usual: Sequence[float], now: Sequence[float]) -> int:
    """How many steps are."""
    if len(usual) < FEWEST:
        return 0
    bound = fmean(usual) + SIGMAS * pstdev(usual)
    return sum(each > bound for each in now)


def slowest(seen: ClusterStatus) -> int | None:
    """A rank whose speed for its work is below 0.7 of the median."""
    paces = {
        each.rank: each.step_seconds / len(each.shards)
        for each in _last(seen).ranks
        if each.step_seconds is not None and each.shards and each.rank not in seen.excluded
    }
    if len(paces) < 3:
        return None
    slow = max(paces, key=paces.__getitem__)
    return slow if median(paces.values()) / paces[slow] < SLOW else None


def absent(seen: ClusterStatus) -> list[int]:
    """Ranks that do not answer."""
    return [each.rank for each in _last(seen).ranks if not each.alive]


def suspect(ranks: Sequence[RankReport]) -> int | None:
    """The rank that works against the others, or whose gradients are much larger."""
    there = [each for each in ranks if each.agreement is not None and each.gradient_norm]
    if len(there) < 3:
        return None
    worst = min(there, key=lambda each: each.agreement or 0.0)
    if (worst.agreement or 0.0) < OPPOSED:
        return worst.rank
    largest = max(there, key=lambda each: each.gradient_norm or 0.0)
    usual = median(each.gradient_norm or 0.0 for each in there)
    return largest.rank if (largest.gradient_norm or 0.0) > LARGE * usual else None


def striking(window: Window) -> list[int]:
    """Data shards whose loss is far above the median; at most four."""
    losses = {n: loss for n, loss in enumerate(window.shard_losses) if loss is not None}
    usual = median(losses.values()) if losses else 0.0
    found = [shard for shard, loss in losses.items() if loss > usual + STRIKING]
    return sorted(sorted(found, key=lambda shard: -losses[shard])[:MOST_OUT])


def has_risen(seen: ClusterStatus) -> bool:
    """Whether the validation loss of the last two windows is above what it was before."""
    losses = [each.val_loss for each in seen.windows]
    return len(losses) > 2 and min(losses[-2:]) > min(losses[:-2]) + RISEN


def is_worse(seen: ClusterStatus) -> bool:
    """Whether the validation loss is above the lowest: a spike that heals does not show there."""
    losses = [each.val_loss for each in seen.windows]
    return len(losses) > 1 and losses[-1] > min(losses[:-1]) + RISEN


def _last(seen: ClusterStatus) -> Window:
    return seen.windows[-1]


# Calls --------------------------------------------------------------------------------------------


def train_on(trial: Trial) -> None:
    """To the deadline, and submit."""
    while goes_on(trial):
        trial.run(min(MAX_EPOCHS_PER_CALL, trial.status.remaining_budget))
    submit(trial)


def goes_on(trial: Trial) -> bool:
    """Whether there is time left, and a call to spend it with: the last call ends the episode."""
    return bool(trial.status.remaining_budget) and not trial.status.done


def submit(trial: Trial) -> None:
    """Unless the calls have come to an end, which ends the episode."""
    if not trial.status.done:
        trial.call("submit_model")


def attempted(trial: Trial, tool: str, **arguments: Any) -> TrainingStatus | None:
    """None where it was refused: then that is that."""
    try:
        return trial.call(tool, **arguments)
    except Refused:
        return None


def seen_of(status: TrainingStatus) -> ClusterStatus:
    """What an operator's task has."""
    assert status.cluster is not None, "an operator's task has a cluster"
    return status.cluster
