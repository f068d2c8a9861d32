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
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES = 10
_IDENTITY = torch.eye(CLASSES, dtype=torch.float32)  # whatever the process's default is


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

    gradients: tuple[Tensor, ...]  # flat, one a parameter; of the summed loss / size of the batch
    logits: Tensor  # (n, classes), detached


class Parametrised(Protocol):
    """Says how its parameters lie in a (P,) vector."""

    @property
    def parameters(self) -> tuple[Parameter, ...]: ...


class Network(Parametrised, Protocol):
    """Says how its statistics lie in a (Q,) vector, too."""

    @property
    def norm_widths(self) -> tuple[int, ...]:
        """Of the batch norms; each has a running mean and variance among the statistics."""
        ...

    @property
    def dropout_units(self) -> int: ...

    @property
    def evaluation_chunk(self) -> int:
        """Images of one forward pass of the evaluation: their activations should fit the cache."""
        ...

    def replica(self, weights: Tensor, statistics: Tensor) -> Replica:
        """The network over these vectors, whose later contents it sees."""
        ...


class Replica(Protocol):
    """A network at work; one thread at a time may call `gradient`, any number `logits`."""

    def gradient(
        self,
        images: Tensor,  # (n, C, H, W)
        labels: Tensor,  # (n,)
        masks: Tensor | None,  # (n, dropout_units): 0 or 1 / keep probability
        batch_size: float,  # what the summed loss is divided by
    ) -> ShardResult:
        """Moves the running statistics, too."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """In eval mode, (n, classes)."""
        ...


def initial_weights(network: Parametrised, generator: torch.Generator) -> Tensor:
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


def flat(gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each in memory order: the inverse of `unflatten`, without joining them to one vector.

    A copy of all gradients would cost as much as the optimizer's step. fp32 in bf16, too.
    """
    return tuple(
        (g.permute(0, 2, 3, 1) if g.dim() == 4 else g).reshape(-1).float() for g in gradients
    )


def loss_gradient(logits: Tensor, labels: Tensor, batch_size: float) -> Tensor:
    """Of the summed cross-entropy over `batch_size`: (softmax - one-hot) / batch_size."""
    one_hot = _IDENTITY.index_select(0, labels)
    return torch.softmax(logits, 1).sub_(one_hot).div_(batch_size)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
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
    """`linear` with a backward pass made of the same product."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return linear(grad, weight.t()), linear(grad.t(), x.t())


@dataclass(frozen=True)
class Mlp:
    """linear -> ReLU -> dropout -> linear."""

    inputs: int
    hidden: int

    @property
    def norm_widths(self) -> tuple[int, ...]:
        return ()

    @property
    def dropout_units(self) -> int:
        return self.hidden

    @property
    def evaluation_chunk(self) -> int:
        return 250

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (
            Parameter((self.hidden, self.inputs), math.sqrt(2 / self.inputs)),
            Parameter((self.hidden,), 0),
            Parameter((CLASSES, self.hidden), math.sqrt(1 / self.hidden)),
            Parameter((CLASSES,), 0),
        )

    def replica(self, weights: Tensor, statistics: Tensor) -> Replica:
        return _MlpReplica(unflatten(self.parameters, weights))


class _MlpReplica:
    """A backward pass written by hand: at this size autograd would cost as much as the work."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._parameters = parameters

    def gradient(
        self, images: Tensor, labels: Tensor, masks: Tensor | None, batch_size: float
    ) -> ShardResult:
        w1, b1, w2, b2 = self._parameters
        x = images.reshape(len(images), -1)
        hidden = linear(x, w1, b1, relu=True)
        dropped = hidden if masks is None else hidden * masks
        logits = torch.addmm(b2, dropped, w2.t())
        d_logits = loss_gradient(logits, labels, batch_size)
        d_hidden = d_logits @ w2
        d_hidden = d_hidden if masks is None else d_hidden.mul_(masks)
        d_hidden = torch.ops.aten.threshold_backward(d_hidden, hidden, 0)
        gradients = (
            linear(d_hidden.t(), x.t()),
            d_hidden.sum(0),
            d_logits.t() @ dropped,
            d_logits.sum(0),
        )
        return ShardResult(flat(gradients), logits)

    def logits(self, images: Tensor) -> Tensor:
        w1, b1, w2, b2 = self._parameters
        return torch.addmm(b2, linear(images.reshape(len(images), -1), w1, b1, relu=True), w2.t())


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
    """Blocks, then dropout -> linear -> batch norm -> ReLU -> dropout -> linear.

    Without batch norm, a bias stands in its place.
    """

    channels: int
    side: int
    blocks: tuple[Block, ...]
    hidden: int
    batch_norm: bool = field(default=True, repr=False)  # records name a network by its repr

    @cached_property
    def features(self) -> int:
        """Width of the flattened output of the last block."""
        side = self.side
        for block in self.blocks:
            side = block.output_side(side)
        return side * side * self.blocks[-1].channels

    @property
    def dropout_units(self) -> int:
        return self.features + self.hidden

    @property
    def evaluation_chunk(self) -> int:
        return 50

    @property
    def norm_widths(self) -> tuple[int, ...]:
        return (*(block.channels for block in self.blocks), self.hidden) if self.batch_norm else ()

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        found: list[Parameter] = []
        inputs = self.channels
        for b in self.blocks:
            fan_in = b.kernel * b.kernel * inputs
            found.append(Parameter((b.channels, b.kernel, b.kernel, inputs), math.sqrt(2 / fan_in)))
            found += self._norm_parameters(b.channels)
            inputs = b.channels
        found.append(Parameter((self.hidden, self.features), math.sqrt(2 / self.features)))
        found += self._norm_parameters(self.hidden)
        found.append(Parameter((CLASSES, self.hidden), math.sqrt(1 / self.hidden)))
        found.append(Parameter((CLASSES,), 0))
        return tuple(found)

    def _norm_parameters(self, width: int) -> list[Parameter]:
        gain = [Parameter((width,), 0, fill=1.0)] if self.batch_norm else []
        return [*gain, Parameter((width,), 0)]

    def replica(self, weights: Tensor, statistics: Tensor) -> Replica:
        return _ConvReplica(self, weights, statistics)


class _ConvReplica:
    MOMENTUM = 0.1  # of the running statistics, PyTorch's default
    EPSILON = 1e-5  # of batch norm, likewise

    def __init__(self, network: ConvNet, weights: Tensor, statistics: Tensor) -> None:
        self._network = network
        # Leaves of autograd that share memory with the vector: updated in place, never rebuilt.
        self._leaves = [v.requires_grad_() for v in unflatten(network.parameters, weights.detach())]
        self._running = statistics.split([w for w in network.norm_widths for _ in range(2)])

    def gradient(
        self, images: Tensor, labels: Tensor, masks: Tensor | None, batch_size: float
    ) -> ShardResult:
        with torch.enable_grad():
            logits = self._forward(images, masks, training=True)
        above = loss_gradient(logits.detach(), labels, batch_size)
        gradients = torch.autograd.grad(logits, self._leaves, above)
        return ShardResult(flat(gradients), logits.detach())

    def logits(self, images: Tensor) -> Tensor:
        return self._forward(images, None, training=False)

    def _forward(self, images: Tensor, masks: Tensor | None, *, training: bool) -> Tensor:
        leaf, running = iter(self._leaves), iter(self._running)

        def norm(x: Tensor) -> Tensor:
            if not self._network.batch_norm:
                bias = next(leaf)
                return x + (bias[:, None, None] if x.dim() == 4 else bias)
            mean, var, gain, bias = next(running), next(running), next(leaf), next(leaf)
            momentum, epsilon = self.MOMENTUM, self.EPSILON
            return torch.batch_norm(x, gain, bias, mean, var, training, momentum, epsilon, False)

        x = images.contiguous(memory_format=torch.channels_last)
        for block in self._network.blocks:
            x = torch.conv2d(x, next(leaf), None, block.stride, block.padding)
            if block.pool > 1:
                x = torch.max_pool2d(x, block.pool)
            x = norm(x).relu_()
        x = x.permute(0, 2, 3, 1).reshape(len(x), -1)  # as it lies in memory: no copy
        features = self._network.features
        x = x if masks is None else x * masks[:, :features]
        x = norm(_Linear.apply(x, next(leaf))).relu_()
        x = x if masks is None else x * masks[:, features:]
        return torch.nn.functional.linear(x, next(leaf), next(leaf)).float()


def initial_statistics(network: Network) -> Tensor:
    """Running means of 0 and variances of 1, (Q,)."""
    pairs = [part for w in network.norm_widths for part in (torch.zeros(w), torch.ones(w))]
    return torch.cat(pairs) if pairs else torch.zeros(0)


NETWORKS: dict[str, Network] = {
    "mnist_mlp": Mlp(inputs=28 * 28, hidden=128),
    "fashion_cnn": ConvNet(
        channels=1,
        side=28,
        blocks=(Block(32, kernel=5, stride=2, pool=2), Block(64, pool=2)),
        hidden=320,
    ),
    "cifar_cnn": ConvNet(
        channels=3,
        side=32,
        blocks=(Block(32, kernel=5, stride=2, pool=2), Block(64, pool=2), Block(128)),
        hidden=168,
    ),
}
