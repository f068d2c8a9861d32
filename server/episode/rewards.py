"""The step reward as named terms, from the epoch history before and after the step.

Every term is a function of the two histories alone, so a step that did not train earns exactly 0
(the submission apart), and it does not matter which tools were called, how often, or in between.
The terms are built so that cutting the same training into more calls never pays:

- `progress` and `convergence` are *potential differences*, F(after) - F(before) for a function F of
  the history. Whatever the cut, they add up to F(end of episode): 0.3 x the best val accuracy, and
  0.05 x the fifths of the budget that reached a new lowest val loss.
- `divergence` and `overfitting` only take. Training stops at a divergence, so no cut can merge or
  hide one; and the last part of a cut ends where the whole ended and pays the same overfitting, to
  which the parts before it can only add.

Why fifths: "+0.05 for a step with a new lowest val loss, at most 5 times an episode", counted by
steps, would pay 20 calls of one epoch five times what it pays one call of 20 epochs. Counted by
fifths of the epoch budget, the bonus still comes at most 5 times and still rewards training that
goes on converging, but the history alone decides it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ml_trainer_env.models import EpochRecord, RewardTerms

PROGRESS_PER_ACCURACY = 0.3
CONVERGENCE_BONUS = 0.05
CONVERGENCE_PARTS = 5  # parts of the budget that can earn the bonus once each
DIVERGENCE_PENALTY = 0.2
OVERFITTING_PER_GAP = 0.05
TOLERATED_GAP = 0.08


def step_reward(
    before: Sequence[EpochRecord],
    after: Sequence[EpochRecord],
    max_epochs: int,
    final_score: float | None = None,
) -> RewardTerms:
    """The reward of the step that took the history from `before` to `after`.

    `final_score` is given to the one step that ends the episode, and None to all others.
    Raises ValueError when `after` does not continue `before` within the budget: our mistake.
    """
    if tuple(after[: len(before)]) != tuple(before) or len(after) > max_epochs:
        raise ValueError(f"not a history of at most {max_epochs} epochs continued by a step")
    step = after[len(before) :]
    return RewardTerms(
        progress=PROGRESS_PER_ACCURACY * (_best_accuracy(after) - _best_accuracy(before)),
        convergence=CONVERGENCE_BONUS
        * (_converging_parts(after, max_epochs) - _converging_parts(before, max_epochs)),
        divergence=-DIVERGENCE_PENALTY if any(record.diverged for record in step) else 0.0,
        overfitting=_overfitting(step),
        submission=0.0 if final_score is None else final_score,
    )


def _best_accuracy(history: Sequence[EpochRecord]) -> float:
    """The best val accuracy so far, 0 before any."""
    return max((r.val_accuracy for r in history if r.val_accuracy is not None), default=0.0)


def _converging_parts(history: Sequence[EpochRecord], max_epochs: int) -> int:
    """How many fifths of the budget hold an epoch with a new lowest val loss, 0 to 5."""
    parts: set[int] = set()
    lowest = math.inf
    for index, record in enumerate(history):
        if record.val_loss is not None and record.val_loss < lowest:
            lowest = record.val_loss
            parts.add(index * CONVERGENCE_PARTS // max_epochs)
    return len(parts)


def _overfitting(step: Sequence[EpochRecord]) -> float:
    """The penalty for the gap at the step's last finished epoch, 0 when there is none."""
    gaps = [record.gap for record in step if record.gap is not None]
    return OVERFITTING_PER_GAP * min(0.0, TOLERATED_GAP - gaps[-1]) if gaps else 0.0
