"""The step reward as named terms, from the epoch history before and after the step.

Every term is a *potential difference* (Ng, Harada, Russell 1999): F(after) - F(before) for a
quantity F of the history. So the terms of an episode add up to F(end), whatever calls led there and
however training was cut into them; a step that did not train earns exactly 0, the submission apart.
Of a run that was taken over they add up to F(end) - F(start): what the agent has made of it.

- progress: 0.3 x the best val accuracy;
- convergence: 0.05 x how many of the task's five fixed levels the lowest val loss has reached;
- overfitting: -0.05 x the gap beyond 0.08 at the last finished epoch;
- divergence: -0.2 x the divergences, the first two of an episode.

The levels are fixed, for a bonus that is measured against the run itself ("a new lowest val loss")
pays for training slowly on purpose: 80 idle epochs before 20 good ones returned more than an honest
run with a better score. Divergences count twice at most, so that an agent that explores is not told
that its episode is worth -5. The return of an episode lies in `RETURNS`, for every task.
"""

from __future__ import annotations

from collections.abc import Sequence

from ml_trainer_env.models import EpochRecord, RewardTerms

PROGRESS_PER_ACCURACY = 0.3
CONVERGENCE_BONUS = 0.05
LEVELS = 5  # of the val loss, for each task
DIVERGENCE_PENALTY = 0.2
DIVERGENCES = 2  # that cost, of an episode
OVERFITTING_PER_GAP = 0.05
TOLERATED_GAP = 0.08

_WORST_EXCESS = OVERFITTING_PER_GAP * (1 - TOLERATED_GAP)
_TRAINED = PROGRESS_PER_ACCURACY + CONVERGENCE_BONUS * LEVELS
_HIGHEST = _TRAINED + _WORST_EXCESS + 1.0  # of a run that was taken over with the worst excess
RETURNS = (-DIVERGENCE_PENALTY * DIVERGENCES - _WORST_EXCESS, _HIGHEST)  # of an episode
STEPS = (-DIVERGENCE_PENALTY - _WORST_EXCESS, _HIGHEST)  # of one step


def step_reward(
    before: Sequence[EpochRecord],
    after: Sequence[EpochRecord],
    levels: Sequence[float],
    final_score: float | None = None,
) -> RewardTerms:
    """The reward of the step that took the history from `before` to `after`.

    `levels` are the task's val losses, in nats; `final_score` is given to the one step that ends
    the episode, and None to all others.
    Raises ValueError when `after` does not continue `before`: our mistake.
    """
    if tuple(after[: len(before)]) != tuple(before):
        raise ValueError("not a history continued by a step")
    reached = _levels_reached(after, levels) - _levels_reached(before, levels)
    return RewardTerms(
        progress=PROGRESS_PER_ACCURACY * (_best_accuracy(after) - _best_accuracy(before)),
        convergence=CONVERGENCE_BONUS * reached,
        divergence=DIVERGENCE_PENALTY * (_divergences(before) - _divergences(after)),
        overfitting=OVERFITTING_PER_GAP * (_excess(before) - _excess(after)),
        submission=0.0 if final_score is None else final_score,
    )


def _best_accuracy(history: Sequence[EpochRecord]) -> float:
    """The best val accuracy so far, 0 before any."""
    return max((r.val_accuracy for r in history if r.val_accuracy is not None), default=0.0)


def _levels_reached(history: Sequence[EpochRecord], levels: Sequence[float]) -> int:
    """How many of `levels` the lowest val loss so far has reached."""
    losses = [r.val_loss for r in history if r.val_loss is not None]
    return sum(min(losses) <= level for level in levels) if losses else 0


def _divergences(history: Sequence[EpochRecord]) -> int:
    """How many epochs diverged, as far as they cost."""
    return min(DIVERGENCES, sum(record.diverged for record in history))


def _excess(history: Sequence[EpochRecord]) -> float:
    """The gap beyond the tolerated one at the last finished epoch, 0 before any."""
    gaps = [record.gap for record in history if record.gap is not None]
    return max(0.0, gaps[-1] - TOLERATED_GAP) if gaps else 0.0
