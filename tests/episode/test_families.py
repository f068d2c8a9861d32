"""Instances: pure functions of split and index, as varied as their ranges, held-out ones apart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from ml_trainer_env.server.families import (
    HELD_OUT_FROM,
    INSTANCES,
    NOISY_FROM,
    SPLITS,
    Draw,
    Instance,
    Split,
    held_out,
    instance,
)

MANY = [instance("train", index) for index in range(1000, 3000)]


def everything() -> dict[tuple[Split, int], Instance]:
    return {(split, i): instance(split, i) for split in SPLITS for i in range(INSTANCES[split])}


def test_an_instance_is_the_same_in_another_process_and_order() -> None:
    program = (
        "from ml_trainer_env.server.families import *\n"
        "print([instance(s, i) for s in reversed(SPLITS) for i in reversed(range(INSTANCES[s]))])"
    )
    other = os.environ | {"PYTHONHASHSEED": "7"}
    told = subprocess.run(
        [sys.executable, "-c", program], env=other, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str(list(reversed(everything().values())))


def test_an_instance_does_not_change_with_versions_of_python_or_libraries() -> None:
    """Written out: a change here is a new version of the family."""
    assert Draw("place").uniform("name") == 0.011304018326436571
    assert instance("eval", 40) == Instance(
        dataset="fashion_mnist",
        images=1150,
        width=128,
        depth=2,
        activation="relu",
        max_epochs=28,
        start="annealed",
        multiplier=0.0207,
        label_noise=0.4,
        moved=True,
    )


def test_no_two_instances_are_alike() -> None:
    assert len(set(everything().values())) == sum(INSTANCES.values())


@pytest.mark.parametrize("split", ["train", "validation"])
def test_only_eval_has_the_combinations_that_are_held_out(split: Split) -> None:
    assert not any(any(held_out(instance(split, i))) for i in range(INSTANCES[split]))


def test_half_of_eval_has_one_of_them_each_as_often() -> None:
    ordinary = [instance("eval", i) for i in range(HELD_OUT_FROM)]
    assert not any(any(held_out(each)) for each in ordinary)
    apart = [held_out(instance("eval", i)) for i in range(HELD_OUT_FROM, INSTANCES["eval"])]
    assert len(apart) == 24
    assert all(sum(each[kind] for each in apart) >= 8 for kind in range(3))


def test_every_range_is_drawn_from_end_to_end() -> None:
    assert {each.dataset for each in MANY} == {"mnist", "fashion_mnist"}
    assert {each.width for each in MANY} == {16, 64, 128}
    assert {each.depth for each in MANY} == {1, 2, 3}
    assert {each.label_noise for each in MANY} == {0.0, 0.2, 0.4}
    assert {each.moved for each in MANY} == {True, False}
    assert {each.max_epochs for each in MANY} == set(range(16, 37))
    assert 500 <= min(each.images for each in MANY) < 550
    assert 2400 < max(each.images for each in MANY) <= 2500
    assert 0.02 <= min(each.multiplier for each in MANY) < 0.022
    assert 45 < max(each.multiplier for each in MANY) <= 50


def test_choices_come_as_often_as_they_should() -> None:
    starts = Counter(each.start for each in MANY)
    assert 0.55 < starts["fresh"] / len(MANY) < 0.65
    assert all(count > 0.03 * len(MANY) for count in starts.values())
    assert all(each.label_noise < 0.4 for each in MANY if each.images < NOISY_FROM)


def test_a_choice_is_not_changed_by_what_else_is_drawn() -> None:
    one, other = Draw("here"), Draw("here")
    other.uniform("something new")
    assert one.uniform("width") == other.uniform("width")
    assert one.uniform("width") != one.uniform("depth")
    assert Draw("there").uniform("width") != one.uniform("width")


@pytest.mark.parametrize(("split", "index"), [("train", 200), ("validation", 24), ("eval", 1000)])
def test_an_index_that_does_not_exist_is_refused(split: Split, index: int) -> None:
    with pytest.raises(ValueError, match="index"):
        instance(split, index)
