"""What is read, changed at random, so that no row is seen twice alike.

The changes of a batch are drawn by the data shard, the order and the position in it, as its rows
are: whoever reads it again, at the same strength, finds the same.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ml_trainer_env.server.draws import Draw
from ml_trainer_env.server.worlds import Reading

SHIFT = 4  # pixels, at full strength
REPLACED = 0.1  # of the symbols, at full strength


def augmented(
    inputs: Tensor,  # (n, C, H, W) of images, (n, T) of symbols
    place: str,
    reading: Reading,
    strength: float,
    symbols: int,
) -> Tensor:
    """`inputs` themselves at a strength of 0, else a new tensor."""
    if not strength:
        return inputs
    sampler = reading.sampler
    name = f"augmentation of {reading.stream}, order {sampler.order}, batch {sampler.cursor}"
    draw = np.random.Generator(np.random.Philox(Draw(place).bits(name)))
    if inputs.is_floating_point():
        return _shifted(inputs, draw, strength)
    return _replaced(inputs, draw, strength, symbols)


def _shifted(images: Tensor, draw: np.random.Generator, strength: float) -> Tensor:
    """Each by whole pixels of its own, down and to the right or back; zeros move in."""
    height, width = images.shape[-2:]
    moves = np.rint(draw.uniform(-1, 1, (len(images), 2)) * SHIFT * strength).astype(int) + SHIFT
    wide = F.pad(images, (SHIFT,) * 4)  # so that a shifted image is a view of it
    return torch.stack(
        [
            each[..., 2 * SHIFT - down :, 2 * SHIFT - right :][..., :height, :width]
            for each, (down, right) in zip(wide, moves, strict=True)
        ]
    )


def _replaced(text: Tensor, draw: np.random.Generator, strength: float, symbols: int) -> Tensor:
    """Each symbol with a small chance by any other, or itself."""
    chosen = torch.from_numpy(draw.random(text.shape) < REPLACED * strength)
    return torch.where(chosen, torch.from_numpy(draw.integers(0, symbols, text.shape)), text)
