"""The networks that a cluster trains: pure functions of a vector of weights for each micro-shard.

Guarantees: the loss and the gradient of a micro-shard depend on its own rows and weights, to the
bit, and not on how many others are computed with it, nor by whom. So every product here is a
batched one, whose batch is the micro-shards, and nothing is summed across them: no batch norm.
The weights of all micro-shards are usually one vector, expanded; where ranks are out of step they
are not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ml_trainer_env.server.engine import modes
from ml_trainer_env.server.models_nn import (
    CLASSES,
    Parameter,
    Parametrised,
    initial_weights,
)
from ml_trainer_env.server.worlds import NetworkName

GROUPS = 4  # of group norm
VERSION = b"2"  # of what a cluster reports: another one, and nothing is shared with the old


class Rows(NamedTuple):
    """What S micro-shards learn from, n rows each; what a row is, the network knows."""

    inputs: Tensor  # (S, n, ...)
    targets: Tensor  # (S, n) or (S, n, T), of 0 .. classes - 1


class ClusterNetwork(Parametrised, Protocol):
    """What it makes of its parameters."""

    @property
    def classes(self) -> int: ...

    def rows(self, draw: np.random.Generator, shards: int, count: int) -> Rows:
        """Drawn at random, of no meaning."""
        ...

    def logits(self, weights: Iterator[Tensor], inputs: Tensor) -> Tensor:
        """(S, m, classes) for m targets a micro-shard; `weights` are of each parameter (S, ...)."""
        ...


def gradients(
    network: ClusterNetwork,
    weights: Tensor,  # (S, P), often an expanded (P,)
    rows: Rows,
) -> tuple[Tensor, Tensor]:
    """Mean loss of each micro-shard in nats, (S,), and its gradient, (S, P)."""
    leaves = [part.detach().requires_grad_() for part in _parts(network, weights)]
    with torch.enable_grad():
        losses = _losses(network, leaves, rows)
        found = torch.autograd.grad(losses.sum(), leaves)
    return losses.detach(), torch.cat([g.flatten(1) for g in found], 1)


def losses(network: ClusterNetwork, weights: Tensor, rows: Rows) -> Tensor:
    """Mean loss of each micro-shard, (S,), in nats."""
    return _losses(network, _parts(network, weights), rows)


def _losses(network: ClusterNetwork, parts: Sequence[Tensor], rows: Rows) -> Tensor:
    logits = network.logits(iter(parts), rows.inputs)
    each = F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="none")
    return each.view(len(rows.inputs), -1).mean(1)


def _parts(network: ClusterNetwork, weights: Tensor) -> list[Tensor]:
    """Views of (S, P), one a parameter, (S, *its shape)."""
    sizes = [p.size for p in network.parameters]
    return [
        part.unflatten(1, p.shape)
        for p, part in zip(network.parameters, weights.split(sizes, 1), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Transformer:
    """Decoder of characters: RMS norm before each part (arXiv 1910.07467), learned positions."""

    symbols: int = 64
    context: int = 64
    width: int = 64
    heads: int = 4
    layers: int = 2

    @property
    def classes(self) -> int:
        return self.symbols

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        d = self.width
        near, wide = 0.7 / math.sqrt(d), 0.7 / math.sqrt(4 * d)
        layer = (
            Parameter((d,), 0, fill=1.0),
            Parameter((d, 3 * d), near),
            Parameter((d, d), near),
            Parameter((d,), 0, fill=1.0),
            Parameter((d, 4 * d), near),
            Parameter((4 * d, d), wide),
        )
        return (
            Parameter((self.symbols, d), 0.05),
            Parameter((self.context, d), 0.05),
            *(layer * self.layers),
            Parameter((d,), 0, fill=1.0),
            Parameter((d, self.symbols), near),
        )

    def rows(self, draw: np.random.Generator, shards: int, count: int) -> Rows:
        text = torch.from_numpy(draw.integers(0, self.symbols, (shards, count, self.context + 1)))
        return Rows(text[..., :-1], text[..., 1:])

    def logits(self, weights: Iterator[Tensor], inputs: Tensor) -> Tensor:
        shards, rows, length = inputs.shape
        d = self.width
        symbols = inputs.reshape(shards, rows * length, 1).expand(-1, -1, d)
        x = torch.gather(next(weights), 1, symbols).view(shards, rows, length, d)
        x = (x + next(weights)[:, None, :length]).view(shards, rows * length, d)
        for _ in range(self.layers):
            x = x + self._attended(weights, x, shards * rows, length)
            x = x + self._mapped(weights, x)
        return torch.bmm(_normed(x, next(weights)), next(weights))

    def _attended(self, weights: Iterator[Tensor], x: Tensor, rows: int, length: int) -> Tensor:
        shards, tokens, d = x.shape
        mixed = torch.bmm(_normed(x, next(weights)), next(weights))
        queries, keys, values = mixed.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return torch.bmm(seen.transpose(1, 2).reshape(shards, tokens, d), next(weights))

    def _mapped(self, weights: Iterator[Tensor], x: Tensor) -> Tensor:
        wide = torch.bmm(_normed(x, next(weights)), next(weights))
        return torch.bmm(F.gelu(wide), next(weights))


def _normed(x: Tensor, gain: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:]) * gain[:, None]


@dataclass(frozen=True, slots=True)
class GroupNormCnn:
    """Two convolutions over 4 x 4 patches, each -> group norm -> ReLU, then linear."""

    side: int = 28
    channels: int = 1
    widths: tuple[int, int] = (24, 48)

    PATCH = 4

    @property
    def classes(self) -> int:
        return CLASSES

    @property
    def _sides(self) -> tuple[int, int]:
        first = self.side // self.PATCH
        return first, -(-first // 2)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        found: list[Parameter] = []
        inputs = self.channels * self.PATCH**2
        for width in self.widths:
            found += (
                Parameter((9 * inputs, width), math.sqrt(2 / (9 * inputs))),
                Parameter((width,), 0, fill=1.0),
                Parameter((width,), 0),
            )
            inputs = width
        features = inputs * self._sides[1] ** 2
        return (
            *found,
            Parameter((features, CLASSES), math.sqrt(1 / features)),
            Parameter((CLASSES,), 0),
        )

    def rows(self, draw: np.random.Generator, shards: int, count: int) -> Rows:
        shape = shards, count, self.channels, self.side, self.side
        images = torch.from_numpy(draw.standard_normal(shape, np.float32))
        return Rows(images, torch.from_numpy(draw.integers(0, CLASSES, shape[:2])))

    def logits(self, weights: Iterator[Tensor], inputs: Tensor) -> Tensor:
        shards, rows = inputs.shape[:2]
        x = F.pixel_unshuffle(inputs.flatten(0, 1), self.PATCH)
        for stride, side in zip((1, 2), self._sides, strict=True):
            patches = F.unfold(x, 3, padding=1, stride=stride)  # (S n, 9 C, side^2)
            flat = patches.transpose(1, 2).reshape(shards, rows * side**2, -1)
            x = torch.bmm(flat, next(weights)).view(shards * rows, side**2, -1).transpose(1, 2)
            x = F.group_norm(x, GROUPS).view(shards, rows, -1, side**2)
            x = x * next(weights)[:, None, :, None] + next(weights)[:, None, :, None]
            x = x.relu().view(shards * rows, -1, side, side)
        head, bias = weights
        return torch.bmm(x.reshape(shards, rows, -1), head) + bias[:, None]


NETWORKS: dict[NetworkName, ClusterNetwork] = {
    "cluster_lm": Transformer(),
    "cluster_cnn": GroupNormCnn(),
}


@cache
def measured() -> str:
    """A digest of what one gradient of each network is in this process."""
    digest = hashlib.sha256(VERSION)
    with modes.of_the_engine(), modes.of_a_computation("fp32"):
        for network in NETWORKS.values():
            weights = initial_weights(network, torch.Generator().manual_seed(0))
            rows = network.rows(np.random.Generator(np.random.SFC64(0)), shards=4, count=2)
            for tensor in gradients(network, weights.expand(4, -1), rows):
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:16]
