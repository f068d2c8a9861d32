"""What whoever computes is told to do, and what it answers. Small values that JSON can carry."""

# pyright: strict

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from ml_trainer_env.events import WindowReport
from ml_trainer_env.models import EpochRecord
from ml_trainer_env.server.runs import Plan, Precision, Workload

Metrics = tuple[float | None, ...]  # of an epoch, in the order of METRICS
METRICS = (
    *("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("clean_train_loss", "clean_train_accuracy"),
)


class Outcome(NamedTuple):
    """What came of an epoch."""

    metrics: Metrics
    window: WindowReport | None = None  # of a cluster


class Order(BaseModel):
    """Train these epochs, one after another, from a state; then grade, if that is wanted."""

    model_config = ConfigDict(frozen=True)

    workload: Workload
    seed: int
    precision: Precision
    state: str | None  # key of where to begin; None: untrained
    plans: tuple[Plan, ...]
    again: int = 0  # how many of the plans were trained before: no divergence ends those
    at_least: int = 1  # epochs, however long they take
    seconds: float = 0.0  # after which the slice ends at the next epoch boundary
    threads: int = 1
    grade: bool = False
    folder: str | None = None  # for the state that is reached; None: a nameless file


class Answer(BaseModel):
    """Of an epoch, or of the end of the order. The state that was reached comes with the last."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome | None = None
    seconds: float = 0.0  # that the epoch took
    last: bool = False
    key: str | None = None  # of the state that was reached
    size: int | None = None  # bytes of its file; None: it could not be written
    test_accuracy: float | None = None
    unreadable: bool = False  # the state to begin with was none
    error: str | None = None  # our mistake: a traceback

    def record(self, epoch: int, plan: Plan) -> EpochRecord:
        """Of an answer with an outcome."""
        assert self.outcome is not None
        return record(epoch, plan, self.outcome)


class Told(NamedTuple):
    """An answer, and with the last one the file that the state was written to, if it has no name,
    or its bytes.

    Whoever is told closes the file.
    """

    answer: Answer
    file: int | None = None  # descriptor
    content: bytes | None = None


def record(epoch: int, plan: Plan, outcome: Outcome) -> EpochRecord:
    """The record of an epoch of which this came."""
    metrics = dict(zip(METRICS, outcome.metrics, strict=True))
    return EpochRecord(epoch=epoch, plan=plan, window=outcome.window, **metrics)


def outcome_of(of: EpochRecord) -> Outcome:
    """What depends on the training: all of a record but its number and its plan."""
    return Outcome(tuple(getattr(of, name) for name in METRICS), of.window)
