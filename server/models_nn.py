"""The three networks, as pure functions of one flat parameter vector.

A network owns no tensors. It says how its parameters lie in the vector, makes initial ones, and
computes loss and gradients of a part of a batch. Choices that buy speed on a CPU: weights lie in
channels-last order and 64-byte aligned; a block is conv -> pool -> norm -> ReLU, so that norm and
ReLU touch a quarter of the memory; most parameters sit in one matrix product, because oneDNN
reorders convolution weights at every call and a 300k-weight convolution spends its time there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES = 10


class Parameter(NamedTuple):
    """One tensor's place in the flat vector. A scale of 0 means: filled with `fill`."""

    shape: tuple[int, ...]  # in memory order; (out, height, width, in) for a convolution
    scale: float  # standard deviation of the initial normal distribution
    fill: float = 0.0

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class ShardResult(NamedTuple):
    """What one shard of a batch contributes."""

    gradient: Tensor  # (P,) of the summed loss divided by the size of the whole batch
    loss: Tensor  # () summed cross-entropy, nats
    correct: Tensor  # () count


class Network(Protocol):
    """Parameters are views of a (P,) vector, statistics of a (Q,) vector; see `unflatten`."""

    @property
    def parameters(self) -> tuple[Parameter, ...]: ...

    @property
    def statistics_size(self) -> int: ...

    @property
    def dropout_units(self) -> int: ...

    def gradient(
        self,
        weights: Tensor,  # (P,)
        statistics: Tensor,  # (Q,), updated in place
        images: Tensor,  # (n, C, H, W)
        labels: Tensor,  # (n,)
        masks: Tensor | None,  # (n, dropout_units): 0 or 1 / keep probability
        batch_size: int,
    ) -> ShardResult: ...

    def logits(self, weights: Tensor, statistics: Tensor, images: Tensor) -> Tensor: ...


def initial_weights(network: Network, generator: torch.Generator) -> Tensor:
    """He initialisation (arXiv 1502.01852), as one (P,) vector."""
    parts = [
        torch.randn(p.size, generator=generator).mul_(p.scale)
        if p.scale
        else torch.full((p.size,), p.fill)
        for p in network.parameters
    ]
    return torch.cat(parts)


def unflatten(parameters: Sequence[Parameter], flat: Tensor) -> list[Tensor]:
    """Views of the vector in the shapes that PyTorch's operators expect."""
    views = [
        part.view(p.shape)
        for p, part in zip(parameters, flat.split([p.size for p in parameters]), strict=True)
    ]
    return [v.permute(0, 3, 1, 2) if v.dim() == 4 else v for v in views]


def _flatten(gradients: Sequence[Tensor]) -> Tensor:
    """The inverse of `unflatten`."""
    return torch.cat(
        [(g.permute(0, 2, 3, 1) if g.dim() == 4 else g).reshape(-1) for g in gradients]
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """`x @ weight.T + bias`, with ReLU fused: oneDNN's product, twice as fast as MKL's here."""
    if torch.is_autocast_enabled("cpu"):
        x, weight = x.bfloat16(), weight.bfloat16()
        bias = None if bias is None else bias.bfloat16()
    if torch.backends.mkldnn.is_available():
        activation = "relu" if relu else "none"
        out = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    else:  # a build without oneDNN, as on some ARM machines
        out = F.linear(x, weight, bias)
        out = out.relu_() if relu else out
    return out.float()


class _Linear(torch.autograd.Function):
    """`_linear` with a backward pass made of the same product."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _linear(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return _linear(grad, weight.t()), _linear(grad.t(), x.t())


@dataclass(frozen=True)
class Mlp:
    """Two linear layers with a hand-written backward pass: at this size autograd costs as much."""

    inputs: int
    hidden: int
    statistics_size: int = 0

    @property
    def dropout_units(self) -> int:
        return self.hidden

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        return (
            Parameter((self.hidden, self.inputs), math.sqrt(2 / self.inputs)),
            Parameter((self.hidden,), 0),
            Parameter((CLASSES, self.hidden), math.sqrt(1 / self.hidden)),
            Parameter((CLASSES,), 0),
        )

    def gradient(
        self,
        weights: Tensor,
        statistics: Tensor,
        images: Tensor,
        labels: Tensor,
        masks: Tensor | None,
        batch_size: int,
    ) -> ShardResult:
        w1, b1, w2, b2 = unflatten(self.parameters, weights)
        x = images.reshape(len(images), -1)
        hidden = _linear(x, w1, b1, relu=True)
        dropped = hidden if masks is None else hidden * masks
        log_p = torch.log_softmax(torch.addmm(b2, dropped, w2.t()), 1)
        picked = labels[:, None]
        loss = -log_p.gather(1, picked).sum()
        correct = (log_p.argmax(1) == labels).sum()
        d_logits = log_p.exp_()  # softmax - one-hot, the gradient of cross-entropy
        d_logits.scatter_add_(1, picked, torch.full_like(picked, -1, dtype=d_logits.dtype))
        d_logits.div_(batch_size)
        d_hidden = d_logits @ w2
        d_hidden = d_hidden if masks is None else d_hidden.mul_(masks)
        d_hidden = torch.ops.aten.threshold_backward(d_hidden, hidden, 0.0)
        gradient = _flatten(
            [
                _linear(d_hidden.t(), x.t()),
                d_hidden.sum(0),
                d_logits.t() @ dropped,
                d_logits.sum(0),
            ]
        )
        return ShardResult(gradient, loss, correct)

    def logits(self, weights: Tensor, statistics: Tensor, images: Tensor) -> Tensor:
        w1, b1, w2, b2 = unflatten(self.parameters, weights)
        hidden = _linear(images.reshape(len(images), -1), w1, b1, relu=True)
        return torch.addmm(b2, hidden, w2.t())


@dataclass(frozen=True)
class Block:
    """conv -> max pool (when `pool` > 1) -> batch norm -> ReLU."""

    channels: int
    kernel: int = 3
    stride: int = 1
    pool: int = 1

    def output_side(self, side: int) -> int:
        return ((side + 2 * self.padding - self.kernel) // self.stride + 1) // self.pool

    @property
    def padding(self) -> int:
        return (self.kernel - 1) // 2


@dataclass(frozen=True)
class ConvNet:
    """Blocks, then dropout -> linear -> batch norm -> ReLU -> dropout -> linear."""

    channels: int
    side: int
    blocks: tuple[Block, ...]
    hidden: int

    MOMENTUM = 0.1  # of the running statistics, PyTorch's default

    @cached_property
    def features(self) -> int:
        side = self.side
        for block in self.blocks:
            side = block.output_side(side)
        return side * side * self.blocks[-1].channels

    @property
    def dropout_units(self) -> int:
        return self.features + self.hidden

    @cached_property
    def statistics_size(self) -> int:
        return 2 * sum(self._norm_widths)

    @cached_property
    def _norm_widths(self) -> tuple[int, ...]:
        return (*(block.channels for block in self.blocks), self.hidden)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        found: list[Parameter] = []
        inputs = self.channels
        for b in self.blocks:
            fan_in = b.kernel * b.kernel * inputs
            found.append(Parameter((b.channels, b.kernel, b.kernel, inputs), math.sqrt(2 / fan_in)))
            found += _norm_parameters(b.channels)
            inputs = b.channels
        found.append(Parameter((self.hidden, self.features), math.sqrt(2 / self.features)))
        found += _norm_parameters(self.hidden)
        found.append(Parameter((CLASSES, self.hidden), math.sqrt(1 / self.hidden)))
        found.append(Parameter((CLASSES,), 0))
        return tuple(found)

    def gradient(
        self,
        weights: Tensor,
        statistics: Tensor,
        images: Tensor,
        labels: Tensor,
        masks: Tensor | None,
        batch_size: int,
    ) -> ShardResult:
        leaves = [v.requires_grad_() for v in unflatten(self.parameters, weights.detach())]
        with torch.enable_grad():
            logits = self._forward(leaves, statistics, images, masks, training=True)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            gradients = torch.autograd.grad(loss / batch_size, leaves)
        correct = (logits.detach().argmax(1) == labels).sum()
        return ShardResult(_flatten(gradients), loss.detach(), correct)

    def logits(self, weights: Tensor, statistics: Tensor, images: Tensor) -> Tensor:
        views = unflatten(self.parameters, weights)
        return self._forward(views, statistics, images, None, training=False)

    def _forward(
        self,
        parameters: list[Tensor],
        statistics: Tensor,
        images: Tensor,
        masks: Tensor | None,
        *,
        training: bool,
    ) -> Tensor:
        take = iter(parameters)
        running = iter(statistics.split([w for w in self._norm_widths for _ in range(2)]))

        def norm(x: Tensor) -> Tensor:
            mean, variance, gain, bias = next(running), next(running), next(take), next(take)
            return F.batch_norm(x, mean, variance, gain, bias, training, self.MOMENTUM)

        x = images.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = F.conv2d(x, next(take), None, block.stride, block.padding)
            if block.pool > 1:
                x = F.max_pool2d(x, block.pool)
            x = norm(x).relu_()
        x = x.permute(0, 2, 3, 1).reshape(len(x), -1)  # as it lies in memory: no copy
        x = x if masks is None else x * masks[:, : self.features]
        x = norm(_Linear.apply(x, next(take))).relu_()
        x = x if masks is None else x * masks[:, self.features :]
        return F.linear(x, next(take), next(take)).float()


def _norm_parameters(width: int) -> list[Parameter]:
    return [Parameter((width,), 0, fill=1.0), Parameter((width,), 0)]


def initial_statistics(network: Network) -> Tensor:
    """Running means of 0 and variances of 1, (Q,)."""
    if not isinstance(network, ConvNet):
        return torch.zeros(network.statistics_size)
    pairs = [part for w in network._norm_widths for part in (torch.zeros(w), torch.ones(w))]
    return torch.cat(pairs)


NETWORKS: dict[str, Network] = {
    "mnist_mlp": Mlp(inputs=28 * 28, hidden=128),
    "fashion_cnn": ConvNet(
        channels=1,
        side=28,
        blocks=(Block(16, stride=2), Block(32, pool=2), Block(64, pool=2)),
        hidden=200,
    ),
    "cifar_cnn": ConvNet(
        channels=3,
        side=32,
        blocks=(Block(16, stride=2), Block(32, pool=2), Block(64, pool=2), Block(128)),
        hidden=160,
    ),
}
