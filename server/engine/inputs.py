"""What one epoch feeds the network: a permutation, augmented images, dropout masks.

All of it is derived from (seed, epoch) before the first step, so any rows can be made at any time,
in any thread, in any order, and are always the same. Randomness is NumPy's, drawn as a whole:
PyTorch's generator is serial and an order of magnitude slower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server.engine.augment import augment, draw_maps
from ml_trainer_env.server.engine.resident import Resident, Rows


@dataclass(frozen=True, slots=True, eq=False)
class InputRows:
    """Images (n, C, H, W), labels (n,), masks (n, units): 0 or 1 / keep probability; or None."""

    images: Tensor
    labels: Tensor
    masks: Tensor | None

    def part(self, first: int, last: int) -> InputRows:
        masks = None if self.masks is None else self.masks[first:last]
        return InputRows(self.images[first:last], self.labels[first:last], masks)


@dataclass(frozen=True, slots=True, eq=False)
class EpochInputs:
    """The rows of one epoch, in the order of their use."""

    source: Rows
    order: Tensor  # (n,) a permutation
    maps: Tensor | None  # (n, 6) by position in the order; None without augmentation
    noise: Tensor | None  # uint8 (n, units); None without dropout
    dropped: int  # a unit is dropped where its noise is below this: dropout in 1/256

    @classmethod
    def draw(
        cls, data: Resident, plan: EpochPlan, dataset: str, seed: int, epoch: int, units: int
    ) -> EpochInputs:
        """Everything random about epoch `epoch` (from 0) of the run with this seed.

        Each use has a stream of its own, so that switching one on leaves the others as they were.
        """
        shuffling, augmenting, dropping = (
            np.random.Generator(np.random.SFC64(s))
            for s in np.random.SeedSequence((seed, epoch)).spawn(3)
        )
        n = len(data.train.labels)
        order = shuffling.permutation(n)
        dropped = round(256 * plan.dropout)
        noise = None
        if dropped:
            noise = torch.from_numpy(dropping.integers(0, 256, (n, units), dtype=np.uint8))
        maps = None
        if plan.augmentation:
            labels = data.train_labels[order]
            side = data.train.images.shape[-1]
            maps = draw_maps(augmenting, labels, dataset, side, plan.augmentation)
        return cls(data.train, torch.from_numpy(order), maps, noise, dropped)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def labels(self) -> Tensor:
        """(n,) in the order of their use."""
        return self.source.labels.index_select(0, self.order)

    def rows(self, first: int, last: int) -> InputRows:
        """The rows at these positions of the epoch."""
        chosen = self.source.select(self.order[first:last])
        images = chosen.images
        if self.maps is not None:
            images = augment(images, self.maps[first:last])
        masks = None
        if self.noise is not None:
            kept = self.noise[first:last] >= self.dropped
            masks = kept.float().mul_(256 / (256 - self.dropped))
        return InputRows(images, chosen.labels, masks)
