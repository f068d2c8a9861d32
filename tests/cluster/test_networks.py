"""The cluster's networks: a micro-shard's numbers are its own, and they are the right ones."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ml_trainer_env.events import MICRO_SHARDS
from ml_trainer_env.server.cluster.networks import (
    GroupNormCnn,
    Rows,
    Transformer,
    gradients,
    losses,
)
from ml_trainer_env.server.engine import modes
from ml_trainer_env.server.models_nn import initial_weights

LM, CNN = Transformer(), GroupNormCnn()


def rows_of(network, shards=MICRO_SHARDS, count=2, seed=1):
    return network.rows(np.random.default_rng(seed), shards, count)


def weights_of(network, seed=0):
    return initial_weights(network, torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def engine_modes():
    with modes.of_the_engine(), modes.of_a_computation("fp32"):
        yield


@pytest.mark.parametrize("network", [LM, CNN], ids=["lm", "cnn"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_micro_shard_has_the_same_bits_whoever_it_is_computed_with(network, data):
    rows, weights = rows_of(network), weights_of(network)
    all_losses, all_gradients = gradients(network, weights.expand(MICRO_SHARDS, -1), rows)
    chosen = data.draw(st.lists(st.integers(0, 15), min_size=1, max_size=16, unique=True))
    some = Rows(rows.inputs[chosen], rows.targets[chosen])
    found_losses, found = gradients(network, weights.expand(len(chosen), -1), some)
    assert torch.equal(found, all_gradients[chosen])
    assert torch.equal(found_losses, all_losses[chosen])


@pytest.mark.parametrize("network", [LM, CNN], ids=["lm", "cnn"])
def test_weights_of_their_own_give_micro_shards_what_they_give_alone(network):
    rows = rows_of(network, shards=3)
    each = [weights_of(network, seed) for seed in range(3)]
    together, found = gradients(network, torch.stack(each), rows)
    for n, weights in enumerate(each):
        alone = Rows(rows.inputs[n : n + 1], rows.targets[n : n + 1])
        loss, gradient = gradients(network, weights.expand(1, -1), alone)
        assert torch.equal(together[n], loss[0])
        assert torch.equal(found[n], gradient[0])
    assert torch.equal(losses(network, torch.stack(each), rows), together)


class Plain(nn.Module):
    """The same network as a module of PyTorch's own parts, one batch and nothing shared."""

    def __init__(self, of, weights: torch.Tensor):
        super().__init__()
        self.of = of
        parts = weights.split([p.size for p in of.parameters])
        shaped = [part.view(p.shape) for part, p in zip(parts, of.parameters, strict=True)]
        self.weights = nn.ParameterList([nn.Parameter(part.clone()) for part in shaped])


class PlainTransformer(Plain):
    def forward(self, text):
        w, width = iter(self.weights), self.of.width
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        x = F.embedding(text, next(w)) + next(w)
        for _ in range(self.of.layers):
            normed = nn.functional.rms_norm(x, (width,), next(w))
            mixed, out = next(w), next(w)
            attended, _ = F.multi_head_attention_forward(
                *(normed.transpose(0, 1),) * 3,
                width,
                self.of.heads,
                mixed.t(),
                None,
                None,
                None,
                False,
                0.0,
                out.t(),
                None,
                attn_mask=mask,
                need_weights=False,
            )
            x = x + attended.transpose(0, 1)
            normed = nn.functional.rms_norm(x, (width,), next(w))
            x = x + F.gelu(normed @ next(w)) @ next(w)
        return nn.functional.rms_norm(x, (width,), next(w)) @ next(w)


class PlainCnn(Plain):
    def forward(self, images):
        w, x = iter(self.weights), F.pixel_unshuffle(images, 4)
        for stride in (1, 2):
            kernel = next(w).t().reshape(-1, x.shape[1], 3, 3)
            x = F.group_norm(F.conv2d(x, kernel, None, stride, 1), 4, next(w), next(w)).relu()
        return x.flatten(1) @ next(w) + next(w)


@pytest.mark.parametrize(
    ("network", "plain"), [(LM, PlainTransformer), (CNN, PlainCnn)], ids=["lm", "cnn"]
)
def test_losses_and_gradients_are_those_of_a_plain_module(network, plain):
    rows, weights = rows_of(network, count=3), weights_of(network)
    found_losses, found = gradients(network, weights.expand(MICRO_SHARDS, -1), rows)
    with torch.enable_grad():
        module = plain(network, weights)
        logits = module(rows.inputs.flatten(0, 1))
        loss = F.cross_entropy(logits.flatten(0, -2), rows.targets.flatten())
        loss.backward()
    expected = torch.cat([w.grad.flatten() for w in module.weights])
    assert math.isclose(float(found_losses.mean()), float(loss), rel_tol=1e-5)
    torch.testing.assert_close(found.mean(0), expected, rtol=1e-4, atol=1e-6)


def test_an_untrained_network_guesses():
    rows = rows_of(LM)
    loss = losses(LM, weights_of(LM).expand(MICRO_SHARDS, -1), rows).mean()
    assert abs(float(loss) - math.log(LM.symbols)) < 0.3
