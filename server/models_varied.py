"""The networks of the families: the same kinds as the classic ones, in many shapes.

A *multiplier* s hides how large a step is: a network works with s times what lies in its vector,
and what lies there was started at 1/s of the usual. So the untrained network is the same for every
s, while the gradient is s times as large and a step moves the network s times as far: the good rate
of Adam lies 1/s as high, that of SGD 1/s^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ml_trainer_env.server.models_nn import (
    CLASSES,
    Parameter,
    Replica,
    ShardResult,
    flat,
    linear,
    loss_gradient,
    unflatten,
)

Activation = Literal["relu", "tanh"]


@dataclass(frozen=True)
class VariedMlp:
    """`depth` times linear -> activation -> dropout, then linear; all of it times `multiplier`."""

    inputs: int
    width: int
    depth: int
    activation: Activation
    multiplier: float

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
            found.append(
                Parameter((self.width, inputs), math.sqrt(gain / inputs) / self.multiplier)
            )
            found.append(Parameter((self.width,), 0))
            inputs = self.width
        found.append(Parameter((CLASSES, inputs), math.sqrt(1 / inputs) / self.multiplier))
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
        self, images: Tensor, labels: Tensor, masks: Tensor | None, batch_size: int
    ) -> ShardResult:
        scale, width = self._network.multiplier, self._network.width
        inputs, outputs = [images.reshape(len(images), -1)], list[Tensor]()
        kept = None if masks is None else masks.split(width, 1)
        for number, (weight, bias) in enumerate(self._hidden):
            outputs.append(self._activated(inputs[-1], weight, bias))
            inputs.append(outputs[-1] if kept is None else outputs[-1] * kept[number])
        logits = self._logits(inputs[-1])
        above = loss_gradient(logits, labels, batch_size).mul_(scale)
        gradients = [above.t() @ inputs[-1], above.sum(0)]
        below = above @ self._last[0]
        for number in reversed(range(len(self._hidden))):
            below = below if kept is None else below.mul_(kept[number])
            above = self._differentiated(below, outputs[number]).mul_(scale)
            gradients = [linear(above.t(), inputs[number].t()), above.sum(0), *gradients]
            if number:
                below = above @ self._hidden[number][0]
        return ShardResult(flat(gradients), logits)

    def logits(self, images: Tensor) -> Tensor:
        x = images.reshape(len(images), -1)
        for weight, bias in self._hidden:
            x = self._activated(x, weight, bias)
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        weight, bias = self._last
        return torch.addmm(bias, x, weight.t()).mul_(self._network.multiplier)

    def _activated(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """As `s relu(z)` is `relu(s z)`, the fused product serves for every s."""
        if self._network.activation == "relu":
            return linear(x, weight, bias, relu=True).mul_(self._network.multiplier)
        return linear(x, weight, bias).mul_(self._network.multiplier).tanh_()

    def _differentiated(self, below: Tensor, output: Tensor) -> Tensor:
        """The gradient before the activation that gave `output`."""
        if self._network.activation == "relu":
            return torch.ops.aten.threshold_backward(below, output, 0)
        return torch.ops.aten.tanh_backward(below, output)
