"""The data of an instance: a part of its split's images, some labels wrong, the rest perhaps moved.

All of it is drawn from the instance's name, once: every seed of it sees the same images.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ml_trainer_env.server.engine.augment import augment
from ml_trainer_env.server.engine.resident import CLASSES, Resident, Rows, resident
from ml_trainer_env.server.runs import Workload
from ml_trainer_env.server.variations import Variation

KEPT = 4  # instances in memory, up to 60 MB each: made again in 10 to 60 ms
PROBED = 1000  # images at most of the training ones, on which the gap is measured

MOST_TURNED = 15.0  # degrees
MOST_MOVED = 0.2  # of half a side
MOST_RECOLOURED = 0.5  # of a channel's deviation: its brightness, and the share of its contrast
NOISE = 0.3  # of a channel's deviation


def data_of(workload: Workload) -> Resident:
    """What a run of `workload` is trained and measured on."""
    if workload.variation is None:
        return resident(workload.dataset)
    return _varied(workload.dataset, workload.variation)


@lru_cache(maxsize=KEPT)
def _varied(dataset: str, variation: Variation) -> Resident:
    base = _pooled(dataset, variation.pooling)
    chosen = _random(variation, "images").permutation(len(base.train.labels))[: variation.images]
    train = base.train.select(torch.from_numpy(chosen))
    labels = _mistaken(train.labels, variation)
    train = Rows(train.images, labels)
    return Resident(
        train=train,
        val=_shifted(base.val, variation, "validation"),
        test=_shifted(base.test, variation, "hidden test"),
        probe=train.select(torch.arange(min(PROBED, variation.images))),
        train_labels=labels.numpy(),
    )


@cache
def _pooled(dataset: str, pooling: int) -> Resident:
    """`dataset` in a coarser grid, for all of its instances."""
    base = resident(dataset)

    def rows(of: Rows) -> Rows:
        images = F.avg_pool2d(of.images, pooling)
        return Rows(images.contiguous(memory_format=torch.channels_last), of.labels)

    if pooling == 1:
        return base
    return replace(base, train=rows(base.train), val=rows(base.val), test=rows(base.test))


def _random(variation: Variation, purpose: str) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(variation.entropy(purpose)))


def _mistaken(labels: Tensor, variation: Variation) -> Tensor:
    """A share of the labels, each another class than the right one."""
    draw = _random(variation, "labels")
    count = round(variation.label_noise * len(labels))
    wrong = torch.from_numpy(draw.permutation(len(labels))[:count])
    by = torch.from_numpy(draw.integers(1, CLASSES, count))
    mistaken = labels.clone()
    mistaken[wrong] = (labels[wrong] + by) % CLASSES
    return mistaken


def _shifted(rows: Rows, variation: Variation, purpose: str) -> Rows:
    draw = _random(variation, purpose)
    match variation.shift:
        case "none":
            return rows
        case "moved":
            return Rows(_moved(rows.images, draw), rows.labels)
        case "recoloured":
            return Rows(_recoloured(rows.images, draw), rows.labels)


def _moved(images: Tensor, draw: np.random.Generator) -> Tensor:
    """Each turned and moved by as much as it happens to be."""
    turned, right, down = 2 * draw.random((3, len(images))) - 1
    angle = np.radians(MOST_TURNED * turned)
    cos, sin = np.cos(angle), np.sin(angle)
    maps = np.stack([cos, -sin, MOST_MOVED * right, sin, cos, MOST_MOVED * down], axis=1)
    moved = augment(images, torch.from_numpy(maps.astype(np.float32)))
    return moved.contiguous(memory_format=torch.channels_last)


def _recoloured(images: Tensor, draw: np.random.Generator) -> Tensor:
    """Of each image, every channel with another brightness and contrast; and noise."""
    n, channels, height, width = images.shape
    contrast, brightness = MOST_RECOLOURED * (2 * draw.random((2, n, channels, 1, 1)) - 1)
    noise = draw.standard_normal((n, height, width, channels), dtype=np.float32)
    grain = torch.from_numpy(noise).permute(0, 3, 1, 2).mul_(NOISE)
    scaled = images * torch.from_numpy(1 + contrast).float()
    return scaled.add_(torch.from_numpy(brightness).float()).add_(grain)
