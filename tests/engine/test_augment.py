"""Augmentation: what a map does to an image, and which maps are drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ml_trainer_env.server.engine.augment import RANGES, augment, draw_maps

SIDE = 32
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
LABELS = np.arange(20_000) % 10

every_dataset = pytest.mark.parametrize("dataset", RANGES)
every_strength = pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])


def pictures(n: int = 6, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """No two pixels alike, so that none can be mistaken for another."""
    size = n * channels * height * width
    shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return (shuffled / size).view(n, channels, height, width)


def under(images: Tensor, *matrix: float) -> Tensor:
    return augment(images, torch.tensor(matrix, dtype=torch.float32).expand(len(images), 6))


def drawn(dataset: str = "cifar10", strength: float = 1.0) -> Tensor:
    return draw_maps(np.random.default_rng(7), LABELS, dataset, SIDE, strength)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


# --- What a map does ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 5, 8)])
def test_the_identity_changes_nothing(shape: tuple[int, int, int]) -> None:
    images = pictures(4, *shape)
    assert close(under(images, *IDENTITY), images)


def test_known_maps() -> None:
    images = pictures()
    pixel = 2 / images.shape[-1]
    assert close(under(images, -1, 0, 0, 0, 1, 0), images.flip(3))
    assert close(under(images, 1, 0, 0, 0, -1, 0), images.flip(2))
    assert close(under(images, 0, -1, 0, 1, 0, 0), images.rot90(1, (2, 3)))
    assert close(under(images, 0, 1, 0, -1, 0, 0), images.rot90(-1, (2, 3)))
    right = under(images, 1, 0, pixel, 0, 1, 0)  # samples one pixel further to the right
    assert close(right[..., :-1], images[..., 1:])
    assert close(right[..., -1], images[..., -1])  # the border pixel goes on outside
    below = under(images, 1, 0, 0, 0, 1, 3 * pixel)
    assert close(below[..., :-3, :], images[..., 3:, :])


def test_images_need_not_be_square() -> None:
    images = pictures(height=5, width=8)
    assert close(under(images, -1, 0, 0, 0, 1, 0), images.flip(3))
    lower = under(images, 1, 0, 0, 0, 1, 2 / 5)
    assert close(lower[..., :-1, :], images[..., 1:, :])


@every_dataset
@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32)])
def test_agrees_with_pytorchs_own_grid(dataset: str, channels: int, side: int) -> None:
    images = pictures(10, channels, side, side)
    maps = drawn(dataset)[:10]
    grid = F.affine_grid(maps.view(-1, 2, 3), list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    # A grid that differs in the last bit moves the sample, between pixels that are far apart.
    torch.testing.assert_close(augment(images, maps), expected, rtol=0, atol=1e-4)


def test_the_images_given_are_not_written_to() -> None:
    images, maps = pictures(), drawn()[:6]
    before = images.clone(), maps.clone()
    assert not close(augment(images, maps), images)
    assert torch.equal(images, before[0])
    assert torch.equal(maps, before[1])


# --- Which maps are drawn -----------------------------------------------------------------------


@every_dataset
def test_strength_zero_draws_the_identity(dataset: str) -> None:
    assert torch.equal(drawn(dataset, 0.0), torch.tensor([IDENTITY]).expand(len(LABELS), 6))


@every_dataset
@every_strength
def test_only_classes_that_allow_it_are_flipped(dataset: str, strength: float) -> None:
    a, b, _, c, d, _ = drawn(dataset, strength).T
    flipped = (a * d - b * c < 0).numpy()
    for label in range(10):
        share = flipped[label == LABELS].mean()
        expected = strength / 2 if label in RANGES[dataset].flippable else 0
        assert share == pytest.approx(expected, abs=0.05 * (expected > 0))


def test_digits_that_are_no_digits_in_the_mirror_are_never_flipped() -> None:
    assert set(RANGES["mnist"].flippable) == {0, 1, 8}


def resampled(maps: Tensor) -> Tensor:
    """Which maps rotate or zoom: (n,) of bool."""
    return (maps[:, 1] != 0) | (maps[:, 4] != 1)


@every_dataset
@every_strength
def test_shift_rotation_and_zoom_fill_their_bounds(dataset: str, strength: float) -> None:
    maps, most = drawn(dataset, strength), RANGES[dataset]
    a, b, dx, c, d, dy = maps[resampled(maps)].double().T
    mirror = torch.sign(a * d - b * c)
    pairs = [
        (dx, 2 * most.shift),
        (dy, 2 * most.shift),
        (torch.atan2(-b, d), math.radians(most.rotation)),
        (torch.hypot(b, d) - 1, most.zoom),
    ]
    for values, bound in pairs:
        limit = strength * bound
        assert values.abs().max() <= limit * (1 + 1e-5) + 1e-6
        assert values.min() < -0.99 * limit
        assert values.max() > 0.99 * limit
        # Uniform: the mean of n is normal with a deviation of limit / sqrt(3 n).
        assert abs(values.mean()) < 5 * limit / math.sqrt(3 * len(values))
    torch.testing.assert_close(mirror * a, d)  # a similarity: nothing is sheared
    torch.testing.assert_close(mirror * c, -b)


@every_dataset
@every_strength
def test_the_share_that_is_resampled(dataset: str, strength: float) -> None:
    share = resampled(drawn(dataset, strength)).double().mean()
    assert share == pytest.approx(RANGES[dataset].resampled, abs=0.02)


def test_the_others_are_moved_by_whole_pixels_and_keep_every_value() -> None:
    maps = drawn("cifar10")
    maps = maps[~resampled(maps)][:500]
    pixels = maps[:, [2, 5]] * SIDE / 2
    assert torch.equal(pixels, pixels.round())
    assert set(pixels.unique().tolist()) == set(range(-4, 5))  # an eighth of the side
    images = pictures(len(maps), 3, SIDE, SIDE)
    for before, after, flipped, (dx, dy) in zip(
        images, augment(images, maps), maps[:, 0] < 0, pixels.int(), strict=True
    ):
        columns = (torch.arange(SIDE).flip(0) if flipped else torch.arange(SIDE)) + dx
        rows = torch.arange(SIDE) + dy
        copied = before[:, rows.clamp(0, SIDE - 1)][..., columns.clamp(0, SIDE - 1)]
        torch.testing.assert_close(
            after, copied, rtol=0, atol=1e-4
        )  # neighbours are 0.3 apart, on average


def test_the_strength_scales_what_is_drawn() -> None:
    weak, strong = drawn("mnist", 0.25), drawn("mnist", 1.0)
    torch.testing.assert_close(4 * weak[:, [2, 5]], strong[:, [2, 5]])


def test_shift_rotation_and_zoom_are_drawn_independently() -> None:
    maps = drawn("mnist")[LABELS == 7].double()  # never flipped
    _, b, dx, _, d, dy = maps.T
    found = torch.corrcoef(torch.stack([dx, dy, torch.atan2(-b, d), torch.hypot(b, d)]))
    assert (found - torch.eye(4)).abs().max() < 0.05
