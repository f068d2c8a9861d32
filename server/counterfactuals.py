"""The grade of a cluster: what an operator's run is worth beside those in which others decided.

One currency: the hidden-test loss of the submitted model is told as the steps after which a healthy
run to its own deadline has it, so time and quality that were lost land in one number. Nobody doing
anything is one fork, each remedy of a small library another; their losses are frozen.

- Actionable, where the best remedy gains `ACTIONABLE` spreads or more over doing nothing: the score
  is the part of that gain which the operator has brought home.
- Quiet, where nothing gains anything: 1 as long as nothing is lost, 0 from `TOLERATED` steps on.
"""

# pyright: strict

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ml_trainer_env import frozen
from ml_trainer_env.models import Grade, GradeComponent
from ml_trainer_env.server.runs import clip
from ml_trainer_env.task_ids import TaskId

ACTIONABLE = 8.0  # spreads
QUIET = 1.0  # spread
TOLERATED = 60.0  # steps
NOTHING_LEARNED = 4.16  # nats: the loss of guessing among 64 symbols, after 0 steps

Worth = Literal["actionable", "quiet"]


@dataclass(frozen=True, slots=True)
class Counterfactuals:
    """What was measured of an instance, in healthy steps."""

    nothing: float
    remedies: tuple[float, ...]

    @property
    def best(self) -> float:
        """Of doing nothing and all remedies."""
        return max(self.nothing, *self.remedies) if self.remedies else self.nothing

    @property
    def gain(self) -> float:
        return self.best - self.nothing

    @property
    def worth(self) -> Worth | None:
        """None in between: such an instance is not released."""
        spread = frozen.healthy().spread
        if self.gain >= ACTIONABLE * spread:
            return "actionable"
        return "quiet" if self.gain < QUIET * spread else None

    def score(self, steps: float) -> float:
        """Of a run that is worth so many healthy steps, in 0..1."""
        if self.worth == "actionable":
            return clip((steps - self.nothing) / self.gain)
        lost = self.nothing - steps - frozen.healthy().spread
        return clip(1 - max(0.0, lost) / TOLERATED)


def healthy_steps(loss: float) -> float:
    """Of a healthy run that ends with this loss: between those that were measured by a straight
    line, beyond the last one by the slope of the last two.
    """
    curve = frozen.healthy()
    steps, losses = (0.0, *curve.steps), (NOTHING_LEARNED, *curve.losses)
    falling = [-each for each in losses]
    right = min(max(1, bisect_left(falling, -loss)), len(steps) - 1)
    (x0, x1), (y0, y1) = steps[right - 1 : right + 1], losses[right - 1 : right + 1]
    return max(0.0, x0 + (loss - y0) / (y1 - y0) * (x1 - x0))


def known(line: frozen.Forked) -> Counterfactuals:
    """Of a line of the table."""
    return Counterfactuals(healthy_steps(line.nothing), tuple(map(healthy_steps, line.remedies)))


def grade(
    task_id: TaskId,
    version: int,
    found: Counterfactuals,
    loss: float,
    submitted_by: Literal["agent", "call_limit"],
) -> Grade:
    """Of a submitted model with this hidden-test loss, in nats, explained."""
    steps = healthy_steps(loss)
    score = found.score(steps)
    name = "recovery" if found.worth == "actionable" else "restraint"
    inputs = {
        "hidden_test_loss": loss,
        "steps": steps,
        "steps_of_nothing": found.nothing,
        "steps_of_best": found.best,
    }
    return Grade(
        task_id=task_id,
        task_version=version,
        score=score,
        components=(GradeComponent(name=name, weight=1.0, value=score, inputs=inputs),),
        explanation=_explanation(name, score, found, loss, steps),
        graded_epoch=None,
        val_accuracy=None,
        generalization_gap=None,
        submitted_by=submitted_by,
    )


def _explanation(name: str, score: float, found: Counterfactuals, loss: float, steps: float) -> str:
    worth = (
        f"Score {score:.3f} = {name}. The submitted model has a hidden-test loss of {loss:.4f} "
        f"nats, which a healthy run has after {steps:.0f} steps. "
    )
    if found.worth == "actionable":
        return (
            f"{worth}Had nobody done anything, it would have been worth {found.nothing:.0f}; the "
            f"best remedy that is known would have saved {found.gain:.0f} and led to "
            f"{found.best:.0f}. Yours saved {steps - found.nothing:.0f}."
        )
    lost = found.nothing - steps
    told = f"cost {lost:.0f} step{'' if round(lost) == 1 else 's'}" if lost > 0 else "cost nothing"
    return (
        f"{worth}Nothing had to be done: left alone it would have been worth {found.nothing:.0f}, "
        f"and what you did {told}."
    )


def rising(curve: frozen.Healthy) -> bool:
    """Whether each measured run has a lower loss than those to earlier deadlines."""
    return all(a > b for a, b in pairwise((NOTHING_LEARNED, *curve.losses)))
