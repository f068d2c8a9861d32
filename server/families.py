"""The families: tasks that are drawn, each instance a pure function of (family, split, index).

Every choice is drawn from a hash of the family, the split, the index and the choice's own name (a
counter-based generator): in any process and order, whatever else is drawn, and a new choice leaves
the others as they were.

What an instance hides is what no recipe survives: the multiplier of its network, which moves the
good learning rate; the noise of its labels; a shift between training and validation. The splits
`train` and `validation` never have the combinations that are held out for half of `eval`.
"""

# pyright: strict

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

Split = Literal["train", "validation", "eval"]
Start = Literal["fresh", "dead_rate", "annealed", "decayed", "held_back", "overfitted"]
Activation = Literal["relu", "tanh"]

SPLITS: tuple[Split, ...] = get_args(Split)
INSTANCES: dict[Split, int] = {"train": 200, "validation": 24, "eval": 48}
HELD_OUT_FROM = 24  # of eval: from here on each has a combination that the other splits never have
ENDLESS_FROM = 1000  # of train: drawn without end, without a frozen scale
INHERITED = 4 / 7  # of the draws; of the instances 40%, for those with tanh, half, are held out
NOISY_FROM = 1000  # images; with fewer, 40% of wrong labels leave nothing to learn

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Instance:
    """What is drawn. Shown to the agent: data set, images, network, budget and start."""

    dataset: str
    images: int  # of training
    width: int
    depth: int
    activation: Activation
    max_epochs: int  # the budget
    start: Start
    multiplier: float  # hidden, as all that follows
    label_noise: float  # share of the training labels that are wrong
    moved: bool  # validation and hidden test images are moved and rotated


@dataclass(frozen=True, slots=True)
class Draw:
    """One number for each name."""

    place: str

    def uniform(self, name: str) -> float:
        """In [0, 1), a multiple of 2^-53."""
        digest = hashlib.sha256(f"{self.place}|{name}".encode()).digest()
        return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53

    def one_of(self, name: str, choices: Sequence[_T]) -> _T:
        return choices[int(self.uniform(name) * len(choices))]

    def log_uniform(self, name: str, low: float, high: float) -> float:
        return low * (high / low) ** self.uniform(name)

    def chance(self, name: str, probability: float) -> bool:
        return self.uniform(name) < probability


def held_out(instance: Instance) -> tuple[bool, ...]:
    """Whether it has each of the combinations that only `eval` has."""
    return (
        instance.multiplier > 10 and instance.moved,
        instance.multiplier < 0.1 and instance.label_noise == 0.4,
        instance.start != "fresh" and instance.activation == "tanh",
    )


def instance(split: Split, index: int) -> Instance:
    """Instance `index` of `varied_mlp`. Raises ValueError for one that does not exist."""
    endless = split == "train" and index >= ENDLESS_FROM
    if index < 0 or not (index < INSTANCES[split] or endless):
        raise ValueError(f"index: {split} has 0 to {INSTANCES[split] - 1}")

    def fits(found: Instance) -> bool:
        combinations = held_out(found)
        if split == "eval" and index >= HELD_OUT_FROM:
            return combinations[index % len(combinations)]
        return not any(combinations)

    return _first(fits, f"varied_mlp|{split}|{index}")


def _first(fits: Callable[[Instance], bool], place: str) -> Instance:
    """The first draw that fits."""
    number = 0
    while not fits(found := _drawn(Draw(f"{place}|{number}"))):
        number += 1
    return found


def _drawn(draw: Draw) -> Instance:
    images = 50 * round(draw.log_uniform("images", 500, 2500) / 50)
    inherited = draw.chance("inherited", INHERITED)
    start: Start = draw.one_of("start", get_args(Start)[1:]) if inherited else "fresh"
    return Instance(
        dataset=draw.one_of("dataset", ("mnist", "fashion_mnist")),
        images=images,
        width=draw.one_of("width", (16, 64, 128)),
        depth=draw.one_of("depth", (1, 2, 3)),
        activation=draw.one_of("activation", get_args(Activation)),
        max_epochs=16 + math.floor(21 * draw.uniform("budget")),
        start=start,
        multiplier=float(f"{draw.log_uniform('multiplier', 0.02, 50):.3g}"),
        label_noise=draw.one_of("noise", (0.0, 0.2, 0.4) if images >= NOISY_FROM else (0.0, 0.2)),
        moved=draw.chance("moved", 0.5),
    )
