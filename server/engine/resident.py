"""A data set as the engine uses it: normalised floats, resident in memory, one copy a process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ml_trainer_env.server import datasets
from ml_trainer_env.server.datasets import Split

CLASSES = 10


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Images float32 (n, C, H, W), zero mean and unit variance by channel; labels int64 (n,).

    The images lie in channels-last order, as the convolutions want them.
    """

    images: Tensor
    labels: Tensor

    def select(self, positions: Tensor) -> Rows:
        """The rows at these positions (m,): whole rows copied, ten times faster than indexing."""
        n, channels, height, width = self.images.shape
        flat = self.images.permute(0, 2, 3, 1).view(n, -1).index_select(0, positions)
        images = flat.view(-1, height, width, channels).permute(0, 3, 1, 2)
        return Rows(images, self.labels.index_select(0, positions))


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """`probe` is a fixed part of `train`, as large as `val`: the first images of every class."""

    train: Rows
    val: Rows
    test: Rows
    probe: Rows
    train_labels: np.ndarray  # (n,), for drawing augmentations


_adopted: dict[str, Resident] = {}


def adopt(name: str, data: Resident) -> None:
    """Use `data`, say memory shared between processes, instead of a copy. Before the first use."""
    _adopted[name] = data


@cache
def resident(name: str) -> Resident:
    """The data set of this name, loaded and normalised at the first call."""
    return _adopted[name] if name in _adopted else load(name)


def load(name: str) -> Resident:
    """A copy of its own of the data set."""
    data = datasets.load(name)
    mean, std = _mean_and_std(torch.from_numpy(data.train.images))

    def rows(split: Split) -> Rows:
        images = (torch.from_numpy(split.images).float() - mean) / std
        labels = torch.from_numpy(split.labels)
        return Rows(images.contiguous(memory_format=torch.channels_last), labels)

    train_rows = rows(data.train)
    per_class = len(data.val.labels) // CLASSES
    positions = [(train_rows.labels == c).nonzero()[:per_class, 0] for c in range(CLASSES)]
    probe = torch.cat(positions).sort().values
    return Resident(
        train=train_rows,
        val=rows(data.val),
        test=rows(data.test),
        probe=train_rows.select(probe),
        train_labels=data.train.labels,
    )


def _mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel of uint8 (n, C, H, W), as float32 (C, 1, 1).

    From histograms, whose sums are exact: the last bits of a sum of millions of floats depend on
    the number of threads that add them, and so would every training.
    """
    counts = torch.stack([c.flatten().bincount(minlength=256) for c in images.unbind(1)])
    values = torch.arange(256)
    n, total, squares = counts.sum(1), counts @ values, counts @ values**2
    mean = total.double() / n
    std = (squares.double() / n - mean**2).sqrt()
    return mean.float()[:, None, None], std.float()[:, None, None]
