"""The networks of the families: gradients against autograd, and what the multiplier does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import models_nn
from ml_trainer_env.server.engine.optimizers import update
from ml_trainer_env.server.models_varied import Activation, VariedMlp

IMAGES, BATCH, INPUTS = 12, 32, 20
MULTIPLIERS = (0.02, 1.0, 50.0)

every_shape = pytest.mark.parametrize("depth", [1, 2, 3])
every_activation = pytest.mark.parametrize("activation", ["relu", "tanh"])
every_multiplier = pytest.mark.parametrize("multiplier", MULTIPLIERS)


def network(depth: int = 2, activation: Activation = "relu", multiplier: float = 1.0) -> VariedMlp:
    return VariedMlp(INPUTS, 16, depth, activation, multiplier)


def initial(of: VariedMlp) -> Tensor:
    """With biases that are not 0, so that a forgotten one shows."""
    weights = models_nn.initial_weights(of, torch.Generator().manual_seed(0))
    noise = torch.randn(len(weights), generator=torch.Generator().manual_seed(1))
    return weights + 0.05 / of.multiplier * noise


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(IMAGES, 1, 4, 5, generator=generator)
    return images, torch.randint(0, 10, (IMAGES,), generator=generator)


def masks_for(of: VariedMlp) -> Tensor:
    kept = torch.rand(IMAGES, of.dropout_units, generator=torch.Generator().manual_seed(3)) < 0.7
    return kept / 0.7


def plain(of: VariedMlp, leaves: Sequence[Tensor], images: Tensor, masks: Tensor | None) -> Tensor:
    """The network as one would write it down, in double precision."""
    x = images.double().flatten(1)
    *hidden, last = zip(leaves[::2], leaves[1::2], strict=True)
    for number, (weight, bias) in enumerate(hidden):
        x = x @ (of.multiplier * weight).t() + of.multiplier * bias
        x = torch.relu(x) if of.activation == "relu" else torch.tanh(x)
        if masks is not None:
            x = x * masks[:, number * of.width : (number + 1) * of.width]
    return x @ (of.multiplier * last[0]).t() + of.multiplier * last[1]


@every_shape
@every_activation
@every_multiplier
@pytest.mark.parametrize("dropout", [False, True])
def test_gradients_agree_with_autograd(
    depth: int, activation: Activation, multiplier: float, dropout: bool
) -> None:
    of = network(depth, activation, multiplier)
    weights, (images, labels) = initial(of), batch()
    masks = masks_for(of) if dropout else None
    result = of.replica(weights, torch.zeros(0)).gradient(images, labels, masks, BATCH)
    leaves = [
        view.double().requires_grad_() for view in models_nn.unflatten(of.parameters, weights)
    ]
    logits = plain(of, leaves, images, masks)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / BATCH
    expected = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close(result.logits.double(), logits.detach(), rtol=1e-4, atol=1e-5)
    for found, wanted in zip(result.gradients, expected, strict=True):
        size = wanted.abs().max()
        torch.testing.assert_close(
            found.double() / size, wanted.flatten() / size, rtol=1e-4, atol=1e-5
        )


@every_shape
@every_activation
@every_multiplier
def test_the_multiplier_does_not_change_the_untrained_network(
    depth: int, activation: Activation, multiplier: float
) -> None:
    images, _ = batch()
    usual, other = network(depth, activation), network(depth, activation, multiplier)
    logits = [of.replica(initial(of), torch.zeros(0)).logits(images) for of in (usual, other)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@every_multiplier
@pytest.mark.parametrize(("optimizer", "power"), [("adam", 1), ("sgd", 2)])
def test_the_good_rate_moves_with_the_multiplier(
    optimizer: str, power: int, multiplier: float
) -> None:
    """One step at the rate divided by s, or by s^2 for SGD, moves the network alike."""
    images, labels = batch()
    reached: list[Tensor] = []
    for of in (network(), network(multiplier=multiplier)):
        weights = initial(of)
        gradients = of.replica(weights, torch.zeros(0)).gradient(images, labels, None, IMAGES)
        plan = EpochPlan.model_validate(
            {
                "optimizer": optimizer,
                "learning_rate": 0.01 / of.multiplier**power,
                "batch_size": 32,
                "weight_decay": 0.0,
                "dropout": 0.0,
                "augmentation": 0.0,
            }
        )
        moments = [[torch.zeros_like(weights)] for _ in range(2 if optimizer == "adam" else 1)]
        update(plan, [weights], [torch.cat(gradients.gradients)], moments, 0)
        reached.append(of.replica(weights, torch.zeros(0)).logits(images))
    torch.testing.assert_close(*reached, rtol=1e-3, atol=1e-3)
