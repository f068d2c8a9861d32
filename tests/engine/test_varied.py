"""The data of instances: of their split alone, noisy and shifted as drawn, always the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import instances, trainer
from ml_trainer_env.server.engine.resident import resident
from ml_trainer_env.server.engine.varied import data_of
from ml_trainer_env.server.families import candidate
from ml_trainer_env.server.runs import Scale, Workload
from ml_trainer_env.server.variations import Shift, Variation
from ml_trainer_env.task_ids import VARIED, Family, InstanceId, Split

PLAN = EpochPlan(
    optimizer="adamw",
    learning_rate=0.001,
    batch_size=64,
    weight_decay=0.01,
    dropout=0.1,
    augmentation=0.5,
)


def workload(family: Family = "varied_mlp", split: Split = "eval", index: int = 0) -> Workload:
    of = InstanceId(family, split, index)
    return instances.made(of, candidate(of, 0), Scale(0.0, 1.0)).workload


def changed(work: Workload, **changes: object) -> Workload:
    assert isinstance(work.variation, Variation)
    return replace(work, variation=replace(work.variation, **changes))


def rows(images: Tensor) -> set[bytes]:
    return {image.contiguous().numpy().tobytes() for image in images}


@pytest.mark.parametrize("family", VARIED)
def test_an_instance_has_images_of_its_split_alone(family: Family) -> None:
    for split in ("train", "validation", "eval"):
        work = changed(workload(family, split), shift="none", pooling=1)
        assert work.dataset.endswith(f"/{split}")
        found, base = data_of(work), resident(work.dataset)
        assert rows(found.train.images) <= rows(base.train.images)
        assert found.val is base.val
        assert found.test is base.test
        assert len(found.train.labels) == found.train.images.shape[0]


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.4])
def test_the_share_of_wrong_labels_is_the_one_drawn_and_only_in_training(noise: float) -> None:
    work = changed(workload(), images=1500, label_noise=noise)
    right, found = data_of(changed(work, label_noise=0.0)), data_of(work)
    assert torch.equal(right.train.images, found.train.images)
    wrong = right.train.labels != found.train.labels
    assert wrong.sum() == round(noise * 1500)
    assert torch.equal(found.train.labels, torch.from_numpy(found.train_labels))
    assert torch.equal(right.val.labels, found.val.labels)
    assert torch.equal(right.test.labels, found.test.labels)
    kinds = (found.train.labels - right.train.labels)[wrong] % 10
    assert set(kinds.tolist()) == (set(range(1, 10)) if noise else set())  # any other class


@pytest.mark.parametrize("shift", ["moved", "recoloured"])
def test_a_shift_changes_what_is_measured_and_not_what_is_trained_on(shift: Shift) -> None:
    plain = changed(workload(), shift="none")
    before, after = data_of(plain), data_of(changed(plain, shift=shift))
    assert torch.equal(before.train.images, after.train.images)
    assert torch.equal(before.probe.images, after.probe.images)
    for old, new in ((before.val, after.val), (before.test, after.test)):
        assert new.images.shape == old.images.shape
        assert torch.equal(old.labels, new.labels)
        assert not rows(old.images) & rows(new.images)
        assert new.images.is_contiguous(memory_format=torch.channels_last)


def test_pooling_is_the_mean_of_the_pixels() -> None:
    work = changed(workload(), shift="none", pooling=2)
    fine, found = resident(work.dataset), data_of(work)
    by_hand = fine.val.images.numpy().reshape(1000, 1, 14, 2, 14, 2).mean((3, 5))
    np.testing.assert_allclose(found.val.images.numpy(), by_hand, atol=1e-5)


def test_the_probe_is_the_beginning_of_the_training_images() -> None:
    for images, probed in ((600, 600), (1500, 1000)):
        data = data_of(changed(workload(), images=images))
        assert torch.equal(data.probe.images, data.train.images[:probed])
        assert torch.equal(data.probe.labels, data.train.labels[:probed])


def test_what_is_random_is_drawn_from_the_instance_and_the_seed() -> None:
    """Initial weights and shuffles of two instances, or two seeds, have nothing in common."""
    works = [workload(split=split, index=i) for split in ("train", "eval") for i in range(30)]
    entropies = {trainer.start(work, seed).run.entropy for work in works for seed in range(3)}
    assert len(entropies) == 3 * len(works)
    one, other = (trainer.start(work, 0) for work in (works[0], changed(works[0], name="other")))
    assert one.key != other.key
    assert not torch.equal(one.current.weights, other.current.weights)


@pytest.mark.parametrize("family", VARIED)
def test_the_same_bits_whatever_was_computed_before(family: Family) -> None:
    work = changed(workload(family), images=500)
    first = trainer.advance(trainer.start(work, 3), PLAN)
    for index in range(1, 7):  # more than are kept in memory
        data_of(changed(workload(family, index=index), images=500))
    second = trainer.advance(trainer.start(work, 3), PLAN)
    assert first.run == second.run
    assert torch.equal(first.current.weights, second.current.weights)
    assert trainer.test_accuracy(first) == trainer.test_accuracy(second)
