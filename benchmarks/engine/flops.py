"""Arithmetic: what a network needs by its description, and what this machine can do at most.

Only convolutions and matrix products count, as usual. A multiply-add is two operations.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ml_trainer_env.benchmarks.timing import seconds_of
from ml_trainer_env.server.engine.team import Team
from ml_trainer_env.server.models_nn import CLASSES, ConvNet, Mlp, Network

PASSES = 3  # of training: forward, gradient of the inputs, gradient of the weights
PEAK_CHANNELS, PEAK_SIDE, PEAK_BATCH = 128, 32, 32  # a convolution that leaves nothing to wish for


def multiply_adds(network: Network) -> int:
    """Multiply-adds of one image's forward pass."""
    if isinstance(network, Mlp):
        return network.inputs * network.hidden + network.hidden * CLASSES
    if not isinstance(network, ConvNet):
        raise TypeError(f"no count for {network!r}")
    total, side, inputs = 0, network.side, network.channels
    for block in network.blocks:
        convolved = replace(block, pool=1).output_side(side)
        total += convolved**2 * block.channels * block.kernel**2 * inputs
        side, inputs = block.output_side(side), block.channels
    return total + network.features * network.hidden + network.hidden * CLASSES


def epoch_operations(network: Network, trained: int, evaluated: int) -> int:
    """Floating-point operations of an epoch over this many images."""
    return 2 * multiply_adds(network) * (PASSES * trained + evaluated)


def convolution_peak(team: Team, repetitions: int = 10) -> float:
    """Operations per second of a large fp32 channels-last convolution on every thread of `team`,
    each single-threaded: the best of `repetitions`.
    """
    shape = (PEAK_BATCH, PEAK_CHANNELS, PEAK_SIDE, PEAK_SIDE)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(PEAK_CHANNELS, PEAK_CHANNELS, 3, 3, generator=generator)
    weight = weight.contiguous(memory_format=torch.channels_last)
    batches = [
        torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
        for _ in range(team.threads)
    ]

    def convolve(images: torch.Tensor) -> None:
        torch.set_num_threads(1)
        with torch.no_grad():  # a mode of the thread
            torch.conv2d(images, weight, None, 1, 1)

    best = min(seconds_of(lambda: team.map(convolve, batches)) for _ in range(repetitions))
    operations = 2 * PEAK_BATCH * PEAK_SIDE**2 * 9 * PEAK_CHANNELS**2
    return team.threads * operations / best
