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

from ml_trainer_env import frozen
from ml_trainer_env.frozen import measured
from ml_trainer_env.models import CLUSTER_TOOL_CALLS, INSTANCE_TOOL_CALLS
from ml_trainer_env.server import counterfactuals, families, incidents
from ml_trainer_env.server.counterfactuals import Counterfactuals
from ml_trainer_env.server.families import Instance
from ml_trainer_env.server.incidents import Incident
from ml_trainer_env.server.runs import Scale, Workload
from ml_trainer_env.server.tasks import TASKS, ClusterTerms, Task
from ml_trainer_env.server.validation import InvalidArguments
from ml_trainer_env.task_ids import (
    CLUSTER,
    Family,
    InstanceId,
    TaskId,
    Varied,
    instance_id,
    instances,
    of_varied,
)

VERSIONS: dict[Family, int] = {"varied_mlp": 1, "varied_cnn": 1, "cluster": 2}
TITLES: dict[Family, str] = {
    "varied_mlp": "Varied MLP",
    "varied_cnn": "Varied CNN",
    "cluster": "Cluster",
}
SHOWN = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR-10"}
LEVELS = {  # val losses that earn the bonus, nats
    "mnist": (1.8, 1.3, 0.95, 0.65, 0.4),
    "fashion_mnist": (1.8, 1.4, 1.1, 0.85, 0.65),
    "cifar10": (2.15, 2.0, 1.85, 1.7, 1.55),
}
BY_VALIDATION = Scale(0.0, 1.0)  # of a run's checkpoints the one with the best val accuracy is kept
NEIGHBOURS = 5  # whose mean is the scale of an instance without one
NO_LEVELS = (0.0, 0.0, 0.0, 0.0, 0.0)  # of a cluster: it is paid at the end alone
NO_SCALE = (0.5, 0.9)  # before there is any


@lru_cache(maxsize=4096)
def task_of(task_id: TaskId) -> Task:
    """The task with this id. Raises KeyError for an id that is none."""
    of = instance_id(task_id)
    if of is None:
        return TASKS[task_id]
    if of.family == CLUSTER:
        return _of_cluster(of)
    line = measured(of)
    found = families.candidate(of, line.candidate if line else 0)
    return made(of, found, Scale(line.low, line.high) if line else _estimated(of_varied(of), found))


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


def _of_cluster(of: InstanceId) -> Task:
    """Raises `InvalidArguments` for one whose counterfactuals were not trained yet."""
    line = frozen.forks().get((of.split, of.index))
    if line is None:
        raise InvalidArguments(f"task_id: {of} is not released: it has nothing to be graded by")
    return cluster_task(of, incidents.incident(of, line.candidate), counterfactuals.known(line))


def cluster_task(of: InstanceId, found: Incident, forks: Counterfactuals) -> Task:
    """The task of an instance of the cluster. Only the grade tells what is wrong with it."""
    world = found.world
    description = (
        f"A transformer of 111 thousand weights learns the characters of a book on a cluster of "
        f"{world.ranks} ranks: real gradients of 16 micro-shards a step, added up, on a virtual "
        f"clock of {world.deadline:.0f} s, about {incidents.STEPS} steps."
    )
    return Task(
        task_id=str(of),
        title=f"{TITLES[of.family]} {of.split}/{of.index}",
        description=description,
        aim=(
            f"{description} You are its operator. It trains well as it is configured, until, "
            "perhaps, something happens: to a host, to the data, to the optimizer; or nothing "
            "does, or something that is best left alone. Watch it window by window, find out, and "
            "do what saves most, or nothing. Whatever you do takes seconds, and the clock never "
            "goes back. At the deadline, submit: the hidden-test loss of the model as it then "
            "stands is told as the steps after which a healthy run has it. Where something can be "
            "saved, the score is the part of it that you have saved, from 0 for doing nothing to 1 "
            "for the best remedy that is known; where nothing can, it is 1 less what you lose, "
            "and 0 from 60 steps on."
        ),
        workload=Workload(
            network=world.network,
            dataset="kjv",
            shards=1,
            version=VERSIONS[of.family],
            scale=BY_VALIDATION,
            world=world,
        ),
        max_epochs=incidents.WINDOWS,
        scale=BY_VALIDATION,
        weights=(),
        loss_levels=NO_LEVELS,
        tool_calls=CLUSTER_TOOL_CALLS,
        cluster=ClusterTerms(world, incidents.BASE, found.step_seconds, forks),
        hidden={
            "happened": " and ".join(found.names) or "nothing",
            "at": ", ".join(f"{at:.0f} s" for at in found.onsets) or "never",
            "worth": str(forks.worth),
            "steps_of_nothing": round(forks.nothing, 1),
            "steps_of_best": round(forks.best, 1),
        },
    )


def pool_curves(task: Task) -> list[list[float | None]]:
    """The val accuracies of each recipe after each epoch; none where nothing is frozen."""
    of = instance_id(task.task_id)
    line = measured(of) if of else None
    return [[None if v is None else v / 1000 for v in curve] for curve in line.val] if line else []


def _estimated(family: Varied, found: Instance) -> Scale:
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
