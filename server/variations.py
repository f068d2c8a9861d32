"""What tells one training of a family from another: plain values, part of the workload.

Everything random about it (which images, which labels are wrong, the initial weights, the shuffles)
is drawn from its name, so two instances have nothing in common by chance.
"""

# pyright: strict

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu", "tanh"]
Shift = Literal["none", "moved", "recoloured"]

WIDTHS, DEPTHS = (16, 64, 128), (1, 2, 3)  # of perceptrons
CHANNELS = (8, 16)  # of CNNs


@dataclass(frozen=True, slots=True)
class MlpShape:
    """A perceptron with `depth` hidden layers."""

    width: int
    depth: int
    activation: Activation

    def __str__(self) -> str:
        layers = f"{self.depth} hidden layer{'s' if self.depth > 1 else ''}"
        return f"an MLP with {layers} of {self.width} units ({self.activation})"


@dataclass(frozen=True, slots=True)
class CnnShape:
    """Two convolutions, of `channels` and twice as many, and a hidden layer."""

    channels: int
    batch_norm: bool

    def __str__(self) -> str:
        norm = "with" if self.batch_norm else "without"
        return f"a CNN of {self.channels} and {2 * self.channels} channels, {norm} batch norm"


Shape = MlpShape | CnnShape


@dataclass(frozen=True, slots=True)
class Variation:
    """Of the images, the labels and the network."""

    name: str  # of what is drawn: no two instances have the same one
    images: int  # of training
    pooling: int  # pixels of a side that are averaged to one
    shape: Shape
    multiplier: float  # of the network: `models_varied.Multiplied`
    label_noise: float  # share of the training labels that are wrong
    shift: Shift  # of the validation and the hidden test images

    def entropy(self, purpose: object) -> int:
        """32 bits for one purpose: torch's generators take no more."""
        digest = hashlib.sha256(f"{self.name}|{purpose}".encode()).digest()
        return int.from_bytes(digest[:4], "big")
