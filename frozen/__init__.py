"""What was measured of the families' instances, frozen: one line of JSON each, a file a family.

A pool of recipes is played on every instance of a single network (`agents/pool.py`, `make
freeze`): `low` is the median of their hidden-test accuracies, `high` the mean of the best three
over three seeds. Of an instance of the cluster its counterfactuals are trained (`make
freeze-cluster`): the run in which nobody does anything, one for each remedy, and healthy runs.
Read by the server, for its grades, and by the baselines that know more than an agent can.
"""

# pyright: strict

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from ml_trainer_env.task_ids import CLUSTER, Family, InstanceId, Split

FOLDER = Path(__file__).parent


class Measured(BaseModel):
    """A line: what the pool did on an instance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Split
    index: int
    candidate: int  # of those that may be the instance: the first whose scale is usable
    low: float
    high: float
    deviation: float  # of the winner's accuracy over its seeds
    winner: int  # the recipe of the pool with the best mean over three seeds
    test: tuple[float | None, ...]  # hidden-test accuracy of each recipe, seed 0; None: no epoch
    val: tuple[tuple[int | None, ...], ...]  # val accuracy after each epoch, in thousandths


def file_of(family: Family) -> Path:
    """Where its lines are."""
    return FOLDER / f"{family}.jsonl"


@cache
def table(family: Family) -> dict[tuple[Split, int], Measured]:
    """All lines of a family, by split and index."""
    file = file_of(family)
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    lines = map(Measured.model_validate_json, text.splitlines())
    return {(line.split, line.index): line for line in lines}


def measured(of: InstanceId) -> Measured | None:
    """The line of an instance; None for one without, such as those that are drawn without end."""
    return table(of.family).get((of.split, of.index))


class Act(BaseModel):
    """What somebody does who knows what is wrong: a tool call, and when."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    since: float  # seconds: at the first end of a window after them
    tool: str
    arguments: dict[str, Any]


class Point(NamedTuple):
    """Of a run's validation loss."""

    seconds: int  # on the clock
    val: int  # thousandths of a nat


class Forked(BaseModel):
    """A line of the cluster: hidden-test losses at the deadline, in nats."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Split
    index: int
    candidate: int  # the first whose remedies are worth what its kind promises
    nothing: float
    remedies: tuple[float, ...]  # in their order
    best: tuple[Act, ...]  # of nothing and these; nothing has no acts
    curve: tuple[Point, ...]  # of doing nothing
    best_curve: tuple[Point, ...]  # of the best; empty where that is to do nothing


class Healthy(BaseModel):
    """Of the cluster: how low the loss is after so many steps of a healthy run to a deadline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[float, ...]  # rising
    losses: tuple[float, ...]  # of each, means of runs, falling; nats
    spread: float  # of steps, by redraws of the order of the data


@cache
def forks() -> dict[tuple[Split, int], Forked]:
    """All lines of the cluster, by split and index."""
    file = file_of(CLUSTER)
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    lines = map(Forked.model_validate_json, text.splitlines())
    return {(line.split, line.index): line for line in lines}


@cache
def healthy() -> Healthy:
    """Of the cluster."""
    return Healthy.model_validate_json((FOLDER / "cluster_healthy.json").read_bytes())
