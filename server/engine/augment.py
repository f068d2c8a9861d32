"""Random shift, rotation, crop and flip of a whole batch: one matrix product and one resampling.

Every image gets one affine map, drawn in advance as a row of six numbers, so that augmenting any
part of an epoch needs no random numbers and parts can be augmented in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ranges:
    """How far augmentation goes at strength 1. Smaller strengths scale it; 0 is the identity."""

    shift: float  # of the side
    rotation: float  # degrees
    zoom: float  # 0.15: crop to 85% or shrink to 115%
    resampled: float  # share of the images that are rotated and zoomed; others move by whole pixels
    flippable: tuple[int, ...]  # classes whose mirror image is still a typical member


FLIP_PROBABILITY = 0.5  # at strength 1

# Digits slant, and only 0, 1 and 8 stay digits when mirrored. Every shoe in the data points left,
# so a mirrored one teaches nothing. Photographs are blurred by resampling, which costs more than it
# teaches: moved by whole pixels they keep every value (docs/log.md has the runs).
RANGES: dict[str, Ranges] = {
    "mnist": Ranges(0.125, 15, 0.15, resampled=1, flippable=(0, 1, 8)),
    "fashion_mnist": Ranges(0.125, 15, 0.15, resampled=1, flippable=(0, 1, 2, 3, 4, 6, 8)),
    "cifar10": Ranges(0.125, 10, 0.10, resampled=0.2, flippable=tuple(range(10))),
}


def draw_maps(
    rng: np.random.Generator, labels: np.ndarray, dataset: str, side: int, strength: float
) -> Tensor:
    """One affine map for each label, (n, 6): rows of 2x3 matrices from output to input coordinates
    in [-1, 1], as `torch.nn.functional.affine_grid` takes them. The images are `side` pixels wide.
    """
    n, most = len(labels), RANGES[dataset]
    angle, zoom, dx, dy = strength * (2 * rng.random((4, n)) - 1)
    resampled = rng.random(n) < most.resampled
    angle = np.where(resampled, angle * math.radians(most.rotation), 0)
    zoom = np.where(resampled, 1 + zoom * most.zoom, 1)
    pixels = np.stack([dx, dy]) * most.shift * side
    dx, dy = np.where(resampled, pixels, pixels.round()) * (2 / side)  # the side is 2 here
    flips = rng.random(n) < FLIP_PROBABILITY * strength
    mirror = np.where(flips & np.isin(labels, most.flippable), -1.0, 1.0)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    maps = np.stack([mirror * cos, -sin, dx, mirror * sin, cos, dy], axis=1)
    return torch.from_numpy(maps.astype(np.float32))


def augment(images: Tensor, maps: Tensor) -> Tensor:
    """Bilinear resampling of (n, C, H, W) under (n, 6) maps; the border pixel goes on outside."""
    n, _, height, width = images.shape
    grid = (maps @ _basis(height, width)).view(n, height, width, 2)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@cache
def _basis(height: int, width: int) -> Tensor:
    """(6, H*W*2): turns maps into sampling grids by one product, ten times faster than
    `affine_grid`, whose batched product has an inner dimension of 3.
    """
    x = (2 * torch.arange(width) + 1) / width - 1
    y = (2 * torch.arange(height) + 1) / height - 1
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    homogeneous = torch.stack([grid_x, grid_y, torch.ones(height, width)]).view(3, -1)
    basis = torch.zeros(2, 3, height * width, 2)
    basis[0, :, :, 0] = homogeneous
    basis[1, :, :, 1] = homogeneous
    return basis.view(6, -1)
