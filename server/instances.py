"""The task of an id: a classic one, or an instance of a family with its scale.

Scales are measured, and frozen in the folder `frozen`. An instance whose best recipes are hardly
better than its middling ones, or whose winner depends on the seed, is no task, and the next draw
is; the file says which one it was. Instances without a line, those that are drawn without end, get
the scale of the most similar ones in `train`.
"""

# pyright: strict

from __future__ import annotations

import math
from functools import lru_cache
from statistics import fmean

from ml_trainer_env.frozen import measured
from ml_trainer_env.models import INSTANCE_TOOL_CALLS
from ml_trainer_env.server import families
from ml_trainer_env.server.families import Instance
from ml_trainer_env.server.runs import Scale, Workload
from ml_trainer_env.server.tasks import TASKS, Task
from ml_trainer_env.task_ids import Family, InstanceId, TaskId, instance_id, instances

VERSIONS: dict[Family, int] = {"varied_mlp": 1, "varied_cnn": 1}
TITLES: dict[Family, str] = {"varied_mlp": "Varied MLP", "varied_cnn": "Varied CNN"}
SHOWN = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR-10"}
LEVELS = {  # val losses that earn the bonus, nats
    "mnist": (1.8, 1.3, 0.95, 0.65, 0.4),
    "fashion_mnist": (1.8, 1.4, 1.1, 0.85, 0.65),
    "cifar10": (2.15, 2.0, 1.85, 1.7, 1.55),
}
BY_VALIDATION = Scale(0.0, 1.0)  # of a run's checkpoints the one with the best val accuracy is kept
NEIGHBOURS = 5  # whose mean is the scale of an instance without one
NO_SCALE = (0.5, 0.9)  # before there is any


@lru_cache(maxsize=4096)
def task_of(task_id: TaskId) -> Task:
    """The task with this id. Raises KeyError for an id that is none."""
    of = instance_id(task_id)
    if of is None:
        return TASKS[task_id]
    line = measured(of)
    found = families.candidate(of, line.candidate if line else 0)
    return made(of, found, Scale(line.low, line.high) if line else _estimated(of.family, found))


def made(of: InstanceId, found: Instance, scale: Scale) -> Task:
    """The task of an instance."""
    variation, taken_over = found.variation, found.inherited
    old_epochs = taken_over.epochs if taken_over else 0
    size = "" if variation.pooling == 1 else " at half their resolution"
    network = str(variation.shape)
    description = (
        f"{network[:1].upper()}{network[1:]} learns from {variation.images:,} "
        f"{SHOWN[found.dataset]} images{size}; 1,000 more measure validation, 2,000 stay hidden "
        "until the end."
    )
    begun = (
        f" You take over a run of {old_epochs} epochs, trained as its configuration says."
        if taken_over
        else ""
    )
    return Task(
        task_id=str(of),
        title=f"{TITLES[of.family]} {of.split}/{of.index}",
        description=description,
        aim=(
            f"{description}{begun} The network's good learning rate, wrong labels among the "
            "training images, and a shift of the validation images are yours to find out. Reach "
            "the highest accuracy."
        ),
        workload=Workload(
            network=of.family,
            dataset=f"{found.dataset}/{of.split}",
            shards=1,
            version=VERSIONS[of.family],
            scale=BY_VALIDATION,
            variation=variation,
        ),
        max_epochs=old_epochs + found.budget,
        scale=scale,
        weights=(("hidden_accuracy", 1.0),),
        loss_levels=LEVELS[found.dataset],
        tool_calls=INSTANCE_TOOL_CALLS,
        inherited=taken_over,
        hidden={
            "multiplier": variation.multiplier,
            "label_noise": variation.label_noise,
            "shift": variation.shift,
            "start": found.start,
            "scale": "frozen" if measured(of) else "estimated",
        },
    )


def pool_curves(task: Task) -> list[list[float | None]]:
    """The val accuracies of each recipe after each epoch; none where nothing is frozen."""
    of = instance_id(task.task_id)
    line = measured(of) if of else None
    return [[None if v is None else v / 1000 for v in curve] for curve in line.val] if line else []


def _estimated(family: Family, found: Instance) -> Scale:
    """The mean of the most similar instances of `train`."""
    known = [
        (_distance(found, families.candidate(of, line.candidate)), line)
        for of in instances(family, "train")
        if (line := measured(of))
    ]
    near = [line for _, line in sorted(known, key=lambda pair: pair[0])[:NEIGHBOURS]]
    if not near:
        return Scale(*NO_SCALE)
    return Scale(fmean(line.low for line in near), fmean(line.high for line in near))


def _distance(one: Instance, other: Instance) -> float:
    """Data, noise and shift decide what can be reached; then images, multiplier, budget, start."""
    a, b = one.variation, other.variation
    return (
        10.0 * (one.dataset != other.dataset)
        + 10.0 * abs(a.label_noise - b.label_noise)
        + 2.0 * (a.shift != b.shift)
        + abs(math.log(a.images / b.images))
        + 0.5 * abs(math.log10(a.multiplier / b.multiplier))
        + 0.5 * (one.start != other.start)
        + 0.5 * (a.shape != b.shape)
    )
