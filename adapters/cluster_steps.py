"""A cluster for policies that are no language models: what an action means, what is seen.

An action looks up whom it is about: the rank whose norm, agreement or speed stands out, the data
shards whose loss does. So a policy learns when to act and on what kind of thing, on any number of
ranks. Every action has a meaning at any time, and none asks for what is not allowed.
"""

# pyright: strict

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median

from ml_trainer_env.adapters.rollout import Rollout
from ml_trainer_env.agents.moves import Move, configure, run
from ml_trainer_env.cluster_status import ClusterStatus, Window
from ml_trainer_env.events import MICRO_SHARDS, WINDOW, RankReport
from ml_trainer_env.models import CLUSTER_TOOL_CALLS, MAX_EPOCHS_PER_CALL, TrainingStatus

RANKS = 8  # at most; of fewer, the others are 0
WINDOWS = 3  # seen
LIMIT = 5.0  # of every feature
MOST_QUARANTINED = 4
MOST_SKIPPED = 1000  # batches
CALLS_KEPT = 4  # to train to the end with, and to submit

Choice = Callable[[ClusterStatus], Move]


def _suspect(seen: ClusterStatus, sign: str) -> int:
    """The rank that stands out among those that work; one that does not answer, before all."""
    ranks = [each for each in seen.windows[-1].ranks if each.rank not in seen.excluded]
    return max(ranks, key=lambda each: _SIGNS[sign](each)).rank


def _norm(of: RankReport) -> float:
    unknown = math.inf if _took_part(of) or not of.alive else -math.inf
    return unknown if of.gradient_norm is None else of.gradient_norm


def _disagreement(of: RankReport) -> float:
    unknown = math.inf if not of.alive else -math.inf
    return unknown if of.agreement is None else -of.agreement


def _pace(of: RankReport) -> float:
    if of.step_seconds is None or not of.shards:
        return -math.inf if of.alive else math.inf
    return of.step_seconds / len(of.shards)


def _took_part(of: RankReport) -> bool:
    return of.step_seconds is not None


_SIGNS: dict[str, Callable[[RankReport], float]] = {
    "norm": _norm,
    "agreement": _disagreement,
    "speed": _pace,
}


def _run(windows: int, seen: ClusterStatus) -> Move:
    return run(windows)


def _diagnose(kind: str, seen: ClusterStatus) -> Move:
    return Move("run_diagnostic", {"kind": kind})


def _restore(windows: int, past: bool, seen: ClusterStatus) -> Move:
    """Before the last windows, or the oldest there is; `past`: not to read again what was read."""
    wanted = seen.step - windows * WINDOW
    step = max((each for each in seen.checkpoints if each <= wanted), default=min(seen.checkpoints))
    skip = min(MOST_SKIPPED, max(0, seen.step - step)) if past else 0
    return Move("restore_checkpoint", {"step": step, "skip_batches": skip})


def _exclude(sign: str, seen: ClusterStatus) -> Move:
    """In addition to those that are out; in their place, where that were too many."""
    rank = _suspect(seen, sign)
    out = sorted({*seen.excluded, rank})
    most = (len(seen.windows[-1].ranks) - 1) // 2
    return Move("configure_ranks", {"exclude": out if len(out) <= most else [rank]})


def _spare(sign: str, seen: ClusterStatus) -> Move:
    return Move("configure_ranks", {"use_spare": [_suspect(seen, sign)]})


def _quarantine(count: int, seen: ClusterStatus) -> Move:
    """In addition to those that are out; in their place, where that were too many."""
    losses = seen.windows[-1].shard_losses
    there = [shard for shard in range(MICRO_SHARDS) if shard not in seen.quarantined]
    worst = sorted(there, key=lambda shard: -(losses[shard] or 0.0))[:count]
    out = sorted({*seen.quarantined, *worst})
    chosen = out if len(out) <= MOST_QUARANTINED else sorted(worst)
    return Move("configure_data", {"quarantine_shards": chosen})


def _reshuffle(seen: ClusterStatus) -> Move:
    return Move("configure_data", {"reshuffle": True})


def _rate(seen: ClusterStatus) -> Move:
    return configure(learning_rate=seen.config.learning_rate)


ACTIONS: dict[str, Choice | None] = {  # None: submit
    "train 1 window": partial(_run, 1),
    "train 2 windows": partial(_run, 2),
    "replay": partial(_diagnose, "replay"),
    "checksum": partial(_diagnose, "weight_checksum"),
    **{f"before the last {n}": partial(_restore, n, False) for n in (1, 2, 4)},
    **{f"before the last {n}, and past them": partial(_restore, n, True) for n in (1, 2, 4)},
    **{f"exclude by {sign}": partial(_exclude, sign) for sign in _SIGNS},
    **{f"spare by {sign}": partial(_spare, sign) for sign in _SIGNS},
    "quarantine the worst": partial(_quarantine, 1),
    "quarantine the worst two": partial(_quarantine, 2),
    "reshuffle": _reshuffle,
    "set the rate again": _rate,
    "submit": None,
}
_CHOICES = tuple(ACTIONS.values())


def play(rollout: Rollout, action: int) -> None:
    """One call, or what is left to do: at the deadline the model is submitted, and with the last
    calls it is trained up to there. Before the first window there is nothing to act on but that.

    Raises IndexError for what is no action, RuntimeError for a call that is refused.
    """
    if not 0 <= action < len(_CHOICES):
        raise IndexError(f"actions are 0 to {len(_CHOICES) - 1}; got {action}")
    choice, status = _CHOICES[action], _status(rollout)
    if choice is None:
        rollout.finish()
        return
    if status.tool_calls_left > CALLS_KEPT:
        seen = seen_of(status)
        _call(rollout, choice(seen) if seen.windows else run(1))
    else:
        _train_on(rollout)
    if not rollout.is_over and not _status(rollout).remaining_budget:
        rollout.finish()


def _train_on(rollout: Rollout) -> None:
    while not rollout.is_over and (left := _status(rollout).remaining_budget):
        _call(rollout, run(min(MAX_EPOCHS_PER_CALL, left)))


def _call(rollout: Rollout, move: Move) -> None:
    answer = rollout.call(*move)
    if answer.error is not None:
        raise RuntimeError(answer.error.message)


def _status(rollout: Rollout) -> TrainingStatus:
    assert rollout.status is not None, "an episode is open"
    return rollout.status


def seen_of(status: TrainingStatus) -> ClusterStatus:
    """Of a cluster's status."""
    assert status.cluster is not None, "the task is a cluster"
    return status.cluster


# What is seen ---------------------------------------------------------------------------------

_STANDING = (
    "time", "step", "goodput", "calls left", "rate in force", "ranks out", "shards out",
    "steps since a checkpoint", "ranks lost", "collectives timed out", "moves",
    "replayed", "replays differ", "checked", "checksums differ",
)  # fmt: skip
_WINDOW = (
    "there", "loss", "val loss", "highest loss", "norm", "highest norm", "skipped", "rate", "speed",
)  # fmt: skip
_RANK = ("there", "alive", "out", "pace", "norm", "agreement", "loss")
_SHARD = ("loss", "out")
FEATURES = (
    *_STANDING,
    *(f"{name}, {n} windows ago" for n in range(WINDOWS) for name in _WINDOW),
    *(f"{name} of rank {n}" for n in range(RANKS) for name in _RANK),
    *(f"{name} of data shard {n}" for n in range(MICRO_SHARDS) for name in _SHARD),
)


def features(status: TrainingStatus) -> list[float]:
    """The numbers of `FEATURES`, each within +-`LIMIT`; what does not exist yet is 0."""
    seen = seen_of(status)
    found = _standing(status, seen)
    for window in [*seen.windows[-WINDOWS:][::-1], *[None] * WINDOWS][:WINDOWS]:
        found += _windows(seen, window) if window else [0.0] * len(_WINDOW)
    if not seen.windows:
        return [*found, *[0.0] * (len(FEATURES) - len(found))]
    found += _ranks(seen, seen.windows[-1].ranks)
    losses = seen.windows[-1].shard_losses
    for shard, difference in enumerate(_to_median(losses)):
        found += [difference, float(shard in seen.quarantined)]
    return [max(-LIMIT, min(LIMIT, value)) for value in found]


def _standing(status: TrainingStatus, seen: ClusterStatus) -> list[float]:
    told = " ".join(seen.incidents)
    replays = [line for line in seen.finding if line.endswith(("the same", "different"))]
    sums = [line.split(": ")[1] for line in seen.finding if line.startswith("rank ")]
    return [
        seen.seconds / seen.deadline,
        seen.step / 600,
        seen.goodput or 0.0,
        status.tool_calls_left / CLUSTER_TOOL_CALLS,
        _log(seen.learning_rate_in_force / seen.config.learning_rate),
        float(len(seen.excluded)),
        float(len(seen.quarantined)),
        (seen.step - max(seen.checkpoints)) / 50,
        float(told.count("was lost")),
        float(told.count("timed out")),
        float(told.count("was moved")),
        float(bool(replays)),
        sum(line.endswith("different") for line in replays) / 8,
        float(bool(sums)),
        float(len(set(sums)) - 1) if sums else 0.0,
    ]


def _windows(seen: ClusterStatus, window: Window) -> list[float]:
    return [
        1.0,
        _known(window.loss) - 2,
        window.val_loss - 2,
        _known(window.highest_loss) - 2,
        _log(window.gradient_norm),
        _log(window.highest_gradient_norm),
        window.skipped / WINDOW,
        _log(_known(window.learning_rate, 0.0) / seen.config.learning_rate),
        _known(window.steps_per_second, 0.0),
    ]


def _ranks(seen: ClusterStatus, ranks: Sequence[RankReport]) -> list[float]:
    """Each beside the median of those that took part."""
    paces = _to_median([_pace(each) if _took_part(each) else None for each in ranks])
    norms = _to_median([_log(each.gradient_norm) if _took_part(each) else None for each in ranks])
    losses = _to_median([each.loss for each in ranks])
    found: list[float] = []
    for number, each in enumerate(ranks[:RANKS]):
        found += [
            1.0,
            float(each.alive),
            float(each.rank in seen.excluded),
            10 * paces[number],
            norms[number],
            each.agreement or 0.0,
            losses[number],
        ]
    return [*found, *[0.0] * (len(_RANK) * RANKS - len(found))]


def _to_median(values: Iterable[float | None]) -> list[float]:
    """Differences; 0 for what is not there."""
    given = list(values)
    there = [each for each in given if each is not None]
    usual = median(there) if there else 0.0
    return [0.0 if each is None else each - usual for each in given]


def _known(value: float | None, otherwise: float = 2 + LIMIT) -> float:
    """A number that is not finite is told as the highest."""
    return otherwise if value is None else value


def _log(value: float | None) -> float:
    """Of tenfold; of what is not finite, the highest."""
    return LIMIT if value is None else math.log10(max(value, 1e-5))
