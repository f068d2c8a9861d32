"""The frozen scales: they follow from what is on record, and what is on record comes out again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from statistics import median

import pytest

from ml_trainer_env.agents import pool
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.policies import follow
from ml_trainer_env.frozen import Measured, table
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.task_ids import INSTANCES, VARIED, Family, InstanceId, Split

LEAST_RANGE, MOST_DEVIATION = 0.08, 0.02
ELSEWHERE = 0.03  # of accuracy: what other processors' bits may make of a whole run
PLAYED = [("varied_mlp", "eval", 5), ("varied_mlp", "eval", 1), ("varied_cnn", "eval", 0)]

every_family = pytest.mark.parametrize("family", VARIED)


def lines(family: Family) -> Iterator[Measured]:
    return iter(table(family).values())


@every_family
@pytest.mark.parametrize("split", ["validation", "eval"])
def test_every_instance_that_is_held_out_is_measured(family: Family, split: Split) -> None:
    measured = [index for of, index in table(family) if of == split]
    assert sorted(measured) == list(range(INSTANCES[family][split]))


@every_family
def test_the_scales_follow_from_the_runs_of_the_pool(family: Family) -> None:
    for line in lines(family):
        tests = [accuracy or 0.0 for accuracy in line.test]
        assert len(tests) == len(line.val) == len(pool.POOL)
        assert line.low == pytest.approx(median(tests), abs=1e-4)
        assert line.high - line.low >= LEAST_RANGE
        assert line.deviation <= MOST_DEVIATION
        best_three = sorted(range(len(tests)), key=lambda n: -tests[n])[:3]
        assert line.winner in best_three
        mean = sum(tests[n] for n in best_three) / 3
        assert line.high == pytest.approx(mean, abs=3 * MOST_DEVIATION)  # two seeds are not here


@every_family
def test_each_curve_has_an_epoch_for_each_of_the_task(family: Family) -> None:
    for (split, index), line in table(family).items():
        task = task_of(str(InstanceId(family, split, index)))
        assert max(len(curve) for curve in line.val) == task.max_epochs  # less: no calls were left
        assert len(line.val[line.winner]) == task.max_epochs
        assert (task.scale.low, task.scale.high) == (line.low, line.high)


def test_the_pool_is_spread_evenly_over_the_rates() -> None:
    ratios = [b.learning_rate / a.learning_rate for a, b in pairwise(pool.POOL)]
    assert max(ratios) < 1.1 * min(ratios)
    assert len({recipe.augmentation for recipe in pool.POOL[:2]}) == 2


@every_family
def test_no_recipe_solves_the_family(family: Family) -> None:
    """In hindsight, on all that is measured: what makes the family worth learning."""
    every = list(lines(family))

    def score(line: Measured, number: int) -> float:
        accuracy = line.test[number] or 0.0
        return min(1.0, max(0.0, (accuracy - line.low) / (line.high - line.low)))

    means = [sum(score(line, n) for line in every) / len(every) for n in range(len(pool.POOL))]
    assert max(means) < 0.7
    assert len({line.winner for line in every}) >= 8


@pytest.mark.parametrize(("family", "split", "index"), PLAYED)
@pytest.mark.parametrize("rank", [0, 8])
def test_a_run_of_the_pool_comes_out_as_frozen(
    family: Family, split: Split, index: int, rank: int
) -> None:
    """Played by an agent, through the environment, with real training."""
    line = table(family)[split, index]
    number = sorted(range(len(pool.POOL)), key=lambda n: -(line.test[n] or 0.0))[rank]
    task_id = str(InstanceId(family, split, index))
    with Attempt("pool", LocalSession, task_id, 0) as attempt:
        follow(attempt, pool.playing(pool.POOL[number]))
    assert attempt.ended is not None
    assert attempt.ended.grade.hidden_test_accuracy == pytest.approx(
        line.test[number], abs=ELSEWHERE
    )
