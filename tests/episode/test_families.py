"""Instances: pure functions of their ids, as varied as their ranges, held-out ones apart."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from ml_trainer_env.models import TrainingConfig
from ml_trainer_env.server.draws import Draw
from ml_trainer_env.server.families import (
    HELD_OUT_FROM,
    NOISY_FROM,
    RANGES,
    Instance,
    candidate,
    candidates,
    held_out,
)
from ml_trainer_env.server.tasks import Inherited
from ml_trainer_env.server.variations import CHANNELS, DEPTHS, WIDTHS, CnnShape, MlpShape, Variation
from ml_trainer_env.task_ids import (
    INSTANCES,
    SPLITS,
    VARIED,
    InstanceId,
    Split,
    Varied,
    instances,
)

WRITTEN_OUT = Instance(
    dataset="fashion_mnist",
    budget=20,
    start="annealed",
    inherited=Inherited(
        TrainingConfig(optimizer="adamw", learning_rate=0.0007, lr_schedule="cosine"), epochs=7
    ),
    variation=Variation(
        name="varied_mlp/eval/40#7",
        images=1000,
        pooling=2,
        shape=MlpShape(width=16, depth=2, activation="relu"),
        multiplier=0.0433,
        label_noise=0.4,
        shift="moved",
    ),
)

every_family = pytest.mark.parametrize("family", VARIED)


def many(family: Varied) -> list[Instance]:
    return [candidate(InstanceId(family, "train", index), 0) for index in range(1000, 2500)]


def everything() -> dict[InstanceId, Instance]:
    ids = [each for family in VARIED for split in SPLITS for each in instances(family, split)]
    return {each: candidate(each, 0) for each in ids}


def test_an_instance_is_the_same_in_another_process_and_order() -> None:
    program = (
        "from ml_trainer_env.server.families import candidate\n"
        "from ml_trainer_env.task_ids import VARIED, SPLITS, instances\n"
        "print([candidate(i, 0) for f in reversed(VARIED) for s in reversed(SPLITS)\n"
        "       for i in reversed(instances(f, s))])"
    )
    other = os.environ | {"PYTHONHASHSEED": "7"}
    told = subprocess.run(
        [sys.executable, "-c", program], env=other, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str(list(reversed(everything().values())))


def test_an_instance_does_not_change_with_versions_of_python_or_libraries() -> None:
    """Written out: a change here is a new version of the family."""
    assert Draw("place").uniform("name") == 0.011304018326436571
    assert candidate(InstanceId("varied_mlp", "eval", 40), 0) == WRITTEN_OUT


def test_a_later_candidate_is_another_instance() -> None:
    of = InstanceId("varied_mlp", "eval", 3)
    first, second, third = islice(candidates(of), 3)
    assert len({first, second, third}) == 3
    assert candidate(of, 2) == third


def test_no_two_instances_are_alike() -> None:
    names = {each.variation.name for each in everything().values()}
    assert len(names) == len(VARIED) * sum(INSTANCES["varied_mlp"].values())


@every_family
@pytest.mark.parametrize("split", ["train", "validation"])
def test_only_eval_has_the_combinations_that_are_held_out(family: Varied, split: Split) -> None:
    for of in instances(family, split):
        assert not any(any(held_out(each)) for each in islice(candidates(of), 3))


@every_family
def test_half_of_eval_has_one_of_them_each_as_often(family: Varied) -> None:
    ids = instances(family, "eval")
    ordinary = [candidate(of, 0) for of in ids[:HELD_OUT_FROM]]
    assert not any(any(held_out(each)) for each in ordinary)
    apart = [held_out(candidate(of, 0)) for of in ids[HELD_OUT_FROM:]]
    assert len(apart) == 24
    assert all(sum(each[kind] for each in apart) >= 8 for kind in range(3))


@every_family
def test_every_range_is_drawn_from_end_to_end(family: Varied) -> None:
    found, ranges = many(family), RANGES[family]
    of = [each.variation for each in found]
    assert {each.dataset for each in found} == set(ranges.datasets)
    assert {each.budget for each in found} == set(range(ranges.epochs[0], ranges.epochs[1] + 1))
    assert {each.label_noise for each in of} == {0.0, 0.2, 0.4}
    assert {each.shift for each in of} == {"none", ranges.shift}
    least, most = ranges.images
    assert least <= min(each.images for each in of) < 1.1 * least
    assert 0.95 * most < max(each.images for each in of) <= most
    low, high = ranges.multiplier
    assert low <= min(each.multiplier for each in of) < 1.1 * low
    assert 0.9 * high < max(each.multiplier for each in of) <= high
    assert {each.shape for each in of} == {
        "varied_mlp": {
            MlpShape(width, depth, activation)
            for width in WIDTHS
            for depth in DEPTHS
            for activation in ("relu", "tanh")
        },
        "varied_cnn": {CnnShape(width, norm) for width in CHANNELS for norm in (False, True)},
    }[family]


@every_family
def test_choices_come_as_often_as_they_should(family: Varied) -> None:
    found = many(family)
    starts = Counter(each.start for each in found)
    assert 0.55 < starts["fresh"] / len(found) < 0.7
    assert len(starts) == 6
    assert all(count > 0.03 * len(found) for count in starts.values())
    noises = [each.variation.label_noise for each in found if each.variation.images < NOISY_FROM]
    assert all(noise < 0.4 for noise in noises)


@every_family
def test_what_was_inherited_does_not_tell_the_multiplier(family: Varied) -> None:
    """Who guesses it from the rate, knowing the start, is often wrong by more than threefold."""
    logs: dict[str, list[float]] = {}
    for each in many(family):
        assert (each.inherited is None) == (each.start == "fresh")
        if each.inherited:
            usual = each.inherited.config.learning_rate * each.variation.multiplier
            logs.setdefault(each.start, []).append(math.log10(usual))
    for of in logs.values():
        middle = sum(of) / len(of)
        assert sum(abs(each - middle) > math.log10(3) for each in of) > 0.4 * len(of)


def test_a_choice_is_not_changed_by_what_else_is_drawn() -> None:
    one, other = Draw("here"), Draw("here")
    other.uniform("something new")
    assert one.uniform("width") == other.uniform("width")
    assert one.uniform("width") != one.uniform("depth")
    assert Draw("there").uniform("width") != one.uniform("width")
