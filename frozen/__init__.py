"""What was measured of the families' instances, frozen: one line of JSON each, a file a family.

A pool of recipes is played on every instance (`agents/pool.py`, `make freeze`): `low` is the
median of their hidden-test accuracies, `high` the mean of the best three over three seeds.
Read by the server, for its grades, and by the baselines that know more than an agent can.
"""

# pyright: strict

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ml_trainer_env.task_ids import Family, InstanceId, Split

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
