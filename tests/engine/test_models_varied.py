"""The networks of the families: gradients against autograd, and what the multiplier does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import models_nn, models_varied
from ml_trainer_env.server.engine.optimizers import update
from ml_trainer_env.server.models_nn import Network
from ml_trainer_env.server.models_varied import HEAVIEST, Multiplied, VariedMlp
from ml_trainer_env.server.variations import (
    CHANNELS,
    DEPTHS,
    WIDTHS,
    Activation,
    CnnShape,
    MlpShape,
)

IMAGES, BATCH, INPUTS = 12, 32, 20
MULTIPLIERS = (0.02, 1.0, 50.0)

every_shape = pytest.mark.parametrize("depth", [1, 2, 3])
every_activation = pytest.mark.parametrize("activation", ["relu", "tanh"])
every_multiplier = pytest.mark.parametrize("multiplier", MULTIPLIERS)


def network(depth: int = 2, activation: Activation = "relu", multiplier: float = 1.0) -> Multiplied:
    return Multiplied(VariedMlp(INPUTS, 16, depth, activation), multiplier)


def initial(of: Multiplied) -> Tensor:
    """With biases that are not 0, so that a forgotten one shows."""
    weights = models_nn.initial_weights(of, torch.Generator().manual_seed(0))
    noise = torch.randn(len(weights), generator=torch.Generator().manual_seed(1))
    return weights + 0.05 / of.multiplier * noise


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(IMAGES, 1, 4, 5, generator=generator)
    return images, torch.randint(0, 10, (IMAGES,), generator=generator)


def masks_for(of: Network) -> Tensor:
    kept = torch.rand(IMAGES, of.dropout_units, generator=torch.Generator().manual_seed(3)) < 0.7
    return kept / 0.7


def plain(of: Multiplied, leaves: Sequence[Tensor], images: Tensor, masks: Tensor | None) -> Tensor:
    """The network as one would write it down, in double precision."""
    inner = of.network
    assert isinstance(inner, VariedMlp)
    x = images.double().flatten(1)
    *hidden, last = zip(leaves[::2], leaves[1::2], strict=True)
    for number, (weight, bias) in enumerate(hidden):
        x = x @ (of.multiplier * weight).t() + of.multiplier * bias
        x = torch.relu(x) if inner.activation == "relu" else torch.tanh(x)
        if masks is not None:
            x = x * masks[:, number * inner.width : (number + 1) * inner.width]
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


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
def test_a_multiplied_cnn_steps_as_the_plain_one_at_the_rate_times_s(
    batch_norm: bool, dropout: bool
) -> None:
    """With SGD, whose good rate moves by s^2, nothing else may differ."""
    multiplier, image = 8.0, (1, 28, 28)
    reached: list[Tensor] = []
    for s in (1.0, multiplier):
        of = models_varied.network(CnnShape(8, batch_norm), image, s)
        weights = models_nn.initial_weights(of, torch.Generator().manual_seed(0))
        statistics = models_nn.initial_statistics(of)
        images = torch.randn(IMAGES, *image, generator=torch.Generator().manual_seed(2))
        masks = masks_for(of) if dropout else None
        labels = torch.arange(IMAGES) % 10
        replica = of.replica(weights, statistics)
        gradients = replica.gradient(images, labels, masks, IMAGES).gradients
        weights -= 0.05 / s**2 * torch.cat(gradients)
        reached.append(replica.logits(images))
    torch.testing.assert_close(*reached, rtol=1e-3, atol=1e-3)


def test_a_cnn_without_batch_norm_has_biases_and_no_statistics() -> None:
    plain, normed = (
        models_varied.network(CnnShape(8, norm), (3, 32, 32), 1.0) for norm in (False, True)
    )
    assert plain.norm_widths == ()
    assert len(normed.norm_widths) == 3
    assert len(normed.parameters) == len(plain.parameters) + 3  # a gain for each


def test_the_heaviest_networks_are_the_heaviest() -> None:
    every = {
        "varied_mlp": [
            models_varied.network(MlpShape(width, depth, "relu"), (1, 14, 14), 1.0)
            for width in WIDTHS
            for depth in DEPTHS
        ],
        "varied_cnn": [
            models_varied.network(CnnShape(channels, norm), image, 1.0)
            for channels in CHANNELS
            for norm in (False, True)
            for image in ((1, 14, 14), (3, 16, 16))
        ],
    }
    for name, heaviest in HEAVIEST.items():
        most = max(sum(p.size for p in of.parameters) for of in every[name])
        assert sum(p.size for p in heaviest.parameters) == most
