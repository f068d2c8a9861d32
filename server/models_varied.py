"""The networks of the families: the same kinds as the classic ones, in many shapes.

A *multiplier* s hides how large a step is: a network works with s times what lies in its vector,
and what lies there was started at 1/s of the usual. So the untrained network is the same for every
s, while the gradient is s times as large and a step moves the network s times as far: the good rate
of Adam lies 1/s as high, that of SGD 1/s^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ml_trainer_env.server.models_nn import (
    CLASSES,
    Block,
    ConvNet,
    Network,
    Parameter,
    Replica,
    ShardResult,
    flat,
    loss_gradient,
    unflatten,
)
from ml_trainer_env.server.variations import (
    CHANNELS,
    DEPTHS,
    WIDTHS,
    Activation,
    CnnShape,
    MlpShape,
    Shape,
)


@lru_cache(maxsize=256)
def network(shape: Shape, image: tuple[int, int, int], multiplier: float) -> Network:
    """Of this shape, for images (C, H, W)."""
    channels, side, _ = image
    match shape:
        case MlpShape(width, depth, activation):
            of = VariedMlp(channels * side * side, width, depth, activation)
        case CnnShape(width, batch_norm):
            blocks = (Block(width, pool=2), Block(2 * width, pool=2))
            of = ConvNet(channels, side, blocks, hidden=4 * width, batch_norm=batch_norm)
    return Multiplied(of, multiplier)


@dataclass(frozen=True)
class Multiplied:
    """`network`, working with `multiplier` times what lies in the vector."""

    network: Network
    multiplier: float

    @property
    def norm_widths(self) -> tuple[int, ...]:
        return self.network.norm_widths

    @property
    def dropout_units(self) -> int:
        return self.network.dropout_units

    @property
    def evaluation_chunk(self) -> int:
        return 250  # small networks: calls cost more than a cache that is missed

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        s = self.multiplier
        return tuple(Parameter(p.shape, p.scale / s, p.fill / s) for p in self.network.parameters)

    def replica(self, weights: Tensor, statistics: Tensor) -> Replica:
        return _MultipliedReplica(self, weights, statistics)


class _MultipliedReplica:
    """The network over a product, which is made again where the vector may have changed."""

    def __init__(self, of: Multiplied, weights: Tensor, statistics: Tensor) -> None:
        self._weights, self._multiplier = weights.detach(), of.multiplier
        self._product = self._weights * of.multiplier
        self._inner = of.network.replica(self._product, statistics)

    def gradient(
        self, images: Tensor, labels: Tensor, masks: Tensor | None, batch_size: float
    ) -> ShardResult:
        """All gradients are linear in that of the logits, so they are multiplied there."""
        self._multiply()
        return self._inner.gradient(images, labels, masks, batch_size / self._multiplier)

    def logits(self, images: Tensor) -> Tensor:
        self._multiply()  # by several threads at once perhaps: they write the same bits
        return self._inner.logits(images)

    def _multiply(self) -> None:
        torch.mul(self._weights, self._multiplier, out=self._product)


@dataclass(frozen=True)
class VariedMlp:
    """`depth` times linear -> activation -> dropout, then linear."""

    inputs: int
    width: int
    depth: int
    activation: Activation

    @property
    def norm_widths(self) -> tuple[int, ...]:
        return ()

    @property
    def dropout_units(self) -> int:
        return self.depth * self.width

    @property
    def evaluation_chunk(self) -> int:
        return 250

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        gain = 2 if self.activation == "relu" else 1
        found: list[Parameter] = []
        inputs = self.inputs
        for _ in range(self.depth):
            found.append(Parameter((self.width, inputs), math.sqrt(gain / inputs)))
            found.append(Parameter((self.width,), 0))
            inputs = self.width
        found.append(Parameter((CLASSES, inputs), math.sqrt(1 / inputs)))
        found.append(Parameter((CLASSES,), 0))
        return tuple(found)

    def replica(self, weights: Tensor, statistics: Tensor) -> Replica:
        return _Replica(self, unflatten(self.parameters, weights))


class _Replica:
    """A backward pass written by hand, as that of the classic MLP."""

    def __init__(self, network: VariedMlp, parameters: list[Tensor]) -> None:
        self._network = network
        pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
        self._hidden, self._last = pairs[:-1], pairs[-1]

    def gradient(
        self, images: Tensor, labels: Tensor, masks: Tensor | None, batch_size: float
    ) -> ShardResult:
        width = self._network.width
        inputs, outputs = [images.reshape(len(images), -1)], list[Tensor]()
        kept = None if masks is None else masks.split(width, 1)
        for number, (weight, bias) in enumerate(self._hidden):
            outputs.append(self._activated(inputs[-1], weight, bias))
            inputs.append(outputs[-1] if kept is None else outputs[-1] * kept[number])
        logits = self._logits(inputs[-1])
        above = loss_gradient(logits, labels, batch_size)
        gradients = [above.t() @ inputs[-1], above.sum(0)]
        below = (above @ self._last[0]).float()
        for number in reversed(range(len(self._hidden))):
            below = below if kept is None else below.mul_(kept[number])
            above = self._differentiated(below, outputs[number])
            gradients = [above.t() @ inputs[number], above.sum(0), *gradients]
            if number:
                below = (above @ self._hidden[number][0]).float()
        return ShardResult(flat(gradients), logits)

    def logits(self, images: Tensor) -> Tensor:
        x = images.reshape(len(images), -1)
        for weight, bias in self._hidden:
            x = self._activated(x, weight, bias)
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        weight, bias = self._last
        return torch.addmm(bias, x, weight.t()).float()

    def _activated(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """At these sizes MKL's product takes half the time of oneDNN's."""
        out = torch.addmm(bias, x, weight.t()).float()
        return out.relu_() if self._network.activation == "relu" else out.tanh_()

    def _differentiated(self, below: Tensor, output: Tensor) -> Tensor:
        """The gradient before the activation that gave `output`."""
        if self._network.activation == "relu":
            return torch.ops.aten.threshold_backward(below, output, 0)
        return torch.ops.aten.tanh_backward(below, output)


HEAVIEST: dict[str, Network] = {  # of each family: what a session may hold
    "varied_mlp": network(MlpShape(max(WIDTHS), max(DEPTHS), "relu"), (1, 14, 14), 1.0),
    "varied_cnn": network(CnnShape(max(CHANNELS), batch_norm=True), (3, 16, 16), 1.0),
}
