"""The families: tasks that are drawn, each instance a pure function of (family, split, index).

Every choice is drawn from a hash of the instance's id and the choice's own name (a counter-based
generator): in any process and order, whatever else is drawn, and a new choice leaves the others as
they were.

What an instance hides is what no recipe survives: the multiplier of its network, which moves the
good learning rate; the noise of its labels; a shift between training and validation. The splits
`train` and `validation` never have the combinations that are held out for half of `eval`.
"""

# pyright: strict

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal, get_args

from ml_trainer_env.models import TrainingConfig
from ml_trainer_env.server.draws import Draw
from ml_trainer_env.server.tasks import Inherited
from ml_trainer_env.server.variations import (
    CHANNELS,
    DEPTHS,
    WIDTHS,
    Activation,
    CnnShape,
    MlpShape,
    Shape,
    Shift,
    Variation,
)
from ml_trainer_env.task_ids import InstanceId, Varied, of_varied

Start = Literal["fresh", "dead_rate", "annealed", "decayed", "held_back", "overfitted"]

HELD_OUT_FROM = 24  # of eval: from here on each has a combination that the other splits never have
INHERITED = 4 / 7  # of the draws; of the instances 40%, for half of these are held out
NOISY_FROM = 1000  # images; with fewer, 40% of wrong labels leave nothing to learn
POOLING = 2  # an episode at half the resolution costs a third, and teaches as much
HARD_TO_LEARN = ("cifar10",)  # with any number


@dataclass(frozen=True, slots=True)
class Ranges:
    """What the instances of a family are drawn from."""

    datasets: tuple[str, ...]
    images: tuple[int, int]  # of training, log-uniform
    multiplier: tuple[float, float]  # log-uniform
    shift: Shift  # of half of them
    epochs: tuple[int, int]  # the budget
    taken_over: dict[Start, tuple[int, int]]  # epochs of an inherited run


OLD_RATES: dict[Start, tuple[float, float]] = {  # of Adam, at a multiplier of 1
    "dead_rate": (1e-9, 5e-6),
    "annealed": (3e-5, 5e-3),
    "decayed": (1e-4, 2e-2),
    "held_back": (3e-5, 5e-3),
    "overfitted": (1e-4, 1e-2),
}


def _taken_over(short: tuple[int, int], long: tuple[int, int]) -> dict[Start, tuple[int, int]]:
    return {
        "dead_rate": short,
        "annealed": short,
        "decayed": short,
        "held_back": short,
        "overfitted": long,
    }


RANGES: dict[Varied, Ranges] = {
    "varied_mlp": Ranges(
        datasets=("mnist", "fashion_mnist"),
        images=(500, 2500),
        multiplier=(0.005, 200),
        shift="moved",
        epochs=(16, 36),
        taken_over=_taken_over((4, 8), (12, 18)),
    ),
    "varied_cnn": Ranges(
        datasets=("fashion_mnist", "cifar10"),
        images=(1000, 2500),
        multiplier=(0.005, 200),
        shift="recoloured",
        epochs=(16, 24),
        taken_over=_taken_over((3, 6), (8, 12)),
    ),
}


@dataclass(frozen=True, slots=True)
class Instance:
    """What is drawn. Shown to the agent: data set, images, network, budget and start."""

    dataset: str
    budget: int  # epochs
    start: Start
    inherited: Inherited | None
    variation: Variation


def held_out(instance: Instance) -> tuple[bool, ...]:
    """Whether it has each of the combinations that only `eval` has."""
    of = instance.variation
    return (
        of.multiplier > 10 and of.shift != "none",
        of.multiplier < 0.1 and of.label_noise == 0.4,
        instance.start != "fresh" and _is_smooth(of.shape),
    )


def _is_smooth(shape: Shape) -> bool:
    """tanh for one family, batch norm for the other."""
    return shape.activation == "tanh" if isinstance(shape, MlpShape) else shape.batch_norm


def candidates(of: InstanceId) -> Iterator[Instance]:
    """What may be the instance: the first one whose scale is usable is, and it is on record."""
    for number in count():
        found = _drawn(of_varied(of), f"{of}#{number}")
        combinations = held_out(found)
        if of.split == "eval" and of.index >= HELD_OUT_FROM:
            if combinations[of.index % len(combinations)]:
                yield found
        elif not any(combinations):
            yield found


def candidate(of: InstanceId, number: int) -> Instance:
    """The one of this number, from 0."""
    return next(islice(candidates(of), number, None))


def _drawn(family: Varied, name: str) -> Instance:
    draw, ranges = Draw(name), RANGES[family]
    dataset = draw.one_of("dataset", ranges.datasets)
    images = 50 * round(draw.log_uniform("images", *ranges.images) / 50)
    start: Start = "fresh"
    if draw.chance("inherited", INHERITED):
        start = draw.one_of("start", tuple(ranges.taken_over))
    variation = Variation(
        name=name,
        images=images,
        pooling=POOLING,
        shape=_shape(draw, family),
        multiplier=draw.log_uniform("multiplier", *ranges.multiplier),
        label_noise=draw.one_of("noise", _noises(dataset, images)),
        shift=ranges.shift if draw.chance("shift", 0.5) else "none",
    )
    return Instance(
        dataset=dataset,
        budget=draw.whole("budget", *ranges.epochs),
        start=start,
        inherited=_inherited(draw, start, ranges, variation.multiplier),
        variation=variation,
    )


def _noises(dataset: str, images: int) -> tuple[float, ...]:
    noisy = images >= NOISY_FROM and dataset not in HARD_TO_LEARN
    return (0.0, 0.2, 0.4) if noisy else (0.0, 0.2)


def _shape(draw: Draw, family: Varied) -> Shape:
    if family == "varied_cnn":
        return CnnShape(draw.one_of("channels", CHANNELS), draw.chance("batch norm", 0.5))
    activations: tuple[Activation, ...] = get_args(Activation)
    return MlpShape(
        draw.one_of("width", WIDTHS),
        draw.one_of("depth", DEPTHS),
        draw.one_of("activation", activations),
    )


def _inherited(draw: Draw, start: Start, ranges: Ranges, multiplier: float) -> Inherited | None:
    """What somebody has done to the run before the agent gets it.

    The rates are what they are for a multiplier of 1, so that each start is what its name says, but
    drawn over two to four decades: else they would tell the multiplier.
    """
    low, high = OLD_RATES[start] if start != "fresh" else (1.0, 1.0)
    drawn = draw.log_uniform("old rate", low, high) / multiplier
    rate = min(10.0, float(f"{drawn:.2g}"))
    match start:
        case "fresh":
            return None
        case "dead_rate":
            config = TrainingConfig(learning_rate=rate)
        case "annealed":
            config = TrainingConfig(optimizer="adamw", learning_rate=rate, lr_schedule="cosine")
        case "decayed":
            config = TrainingConfig(optimizer="adamw", learning_rate=rate, weight_decay=1.0)
        case "held_back":
            config = TrainingConfig(
                learning_rate=rate, dropout=0.5, augmentation=True, augmentation_strength=1.0
            )
        case "overfitted":
            config = TrainingConfig(learning_rate=rate)
    return Inherited(config, draw.whole("old epochs", *ranges.taken_over[start]))
