"""What a task is, the three classic ones, and the graders: plain data and pure functions.

Guarantees: the score is in 0..1 and depends on the epoch history alone (of an instance, on the
hidden-test accuracy of the checkpoint that it chooses), never on the calls that led to it; it
belongs to one checkpoint, the one worth most on validation (earliest on a tie), whose accuracy and
gap are taken from the same epoch; without a finished epoch it is 0; no NaN comes out.
A changed number in this file is a new `version` of its task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from ml_trainer_env.events import Settings
from ml_trainer_env.models import (
    MAX_TOOL_CALLS,
    EpochRecord,
    Grade,
    GradeComponent,
    TrainingConfig,
)
from ml_trainer_env.server.counterfactuals import Counterfactuals
from ml_trainer_env.server.runs import FULL_CREDIT_GAP, NO_CREDIT_GAP, Scale, Workload, clip
from ml_trainer_env.server.worlds import World
from ml_trainer_env.task_ids import TaskId

History = Sequence[EpochRecord]
ComponentName = Literal["accuracy", "generalization", "efficiency", "stability", "hidden_accuracy"]

EASY_SCALE = Scale(low=0.88, high=0.975)  # fixed by the specification
# Calibrated on this project's networks and frozen: docs/calibration.md.
MEDIUM_SCALE = Scale(low=0.80, high=0.905, gap_weight=0.4)
HARD_SCALE = Scale(low=0.45, high=0.76)
HARD_REFERENCE_UTILITY = 0.782  # U of the reference recipe


@dataclass(frozen=True, slots=True)
class Inherited:
    """A run that somebody else began, and the agent takes over."""

    config: TrainingConfig
    epochs: int  # trained under it, for which its schedule was made


@dataclass(frozen=True, slots=True)
class ClusterTerms:
    """What is trained, and against what it is graded, where it is a cluster."""

    world: World
    settings: Settings  # with which it is handed over
    step_seconds: float  # of a healthy step, checkpoints included
    counterfactuals: Counterfactuals


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained, for how long, and what counts.

    `workload` says what the engine runs; the rest is the contract with the agent. `weights` sum
    to 1.
    """

    task_id: TaskId
    title: str
    description: str
    aim: str
    workload: Workload
    max_epochs: int  # those of an inherited run included
    scale: Scale  # of the grade
    weights: tuple[tuple[ComponentName, float], ...]
    loss_levels: tuple[float, float, float, float, float]  # val losses that earn the bonus, nats
    reference_utility: float | None = None  # only where efficiency counts
    tool_calls: int = MAX_TOOL_CALLS
    inherited: Inherited | None = None
    cluster: ClusterTerms | None = None
    hidden: Mapping[str, str | float] = field(default_factory=dict[str, str | float])
    """What the agent is told of the task with the grade, and not before."""

    @property
    def version(self) -> int:
        return self.workload.version

    @property
    def budget(self) -> int:
        """Epochs that the agent may train."""
        return self.max_epochs - (self.inherited.epochs if self.inherited else 0)

    @property
    def goal(self) -> str:
        """The instructions for an agent: the aim, what is measured, and the formula of the score.

        Written from the numbers that `grade` uses, so that the two cannot disagree.
        """
        if self.cluster:
            return f"{self.aim} {self.tool_calls} tool calls; the last one submits."
        letters = [f"{weight:g} {_FORMULAS[name](self)[0]}" for name, weight in self.weights]
        formulas = [" = ".join(_FORMULAS[name](self)) for name, _ in self.weights]
        score = f"score = {' + '.join(letters)}, where {'; '.join(formulas)}"
        return (
            f"{self.aim} You have {self.budget} epochs. The final score, from 0 to 1, belongs "
            f"to the checkpoint {self._graded}, the earliest on a tie (graded_epoch tells), "
            f"wherever training went afterwards: {score}. clip cuts to the range 0..1. "
            f"Without training the score is 0. {self._told_of_the_hidden_test}"
        )

    @property
    def is_graded_on_hidden_images(self) -> bool:
        return any(name == "hidden_accuracy" for name, _ in self.weights)

    @property
    def _told_of_the_hidden_test(self) -> str:
        if self.is_graded_on_hidden_images:
            return f"{self.tool_calls} tool calls; the last one submits."
        return "The hidden-test accuracy is shown with the score and does not count."

    @property
    def _graded(self) -> str:
        if self.workload.scale.gap_weight:
            return "with the highest sum of these terms"
        return "with the best validation accuracy"

    @property
    def card(self) -> dict[str, Any]:
        """What a client is told of the task."""
        return {
            "id": self.task_id,
            "title": self.title,
            "description": self.description,
            "goal": self.goal,
            "max_epochs": self.max_epochs,
            "version": self.version,
        }


TASKS: dict[TaskId, Task] = {  # the classic ones
    "easy_mnist": Task(
        task_id="easy_mnist",
        title="MNIST Digit Classifier",
        description=(
            "A 2-layer MLP with about 100k parameters learns digits from 4,000 MNIST images; "
            "1,000 more measure validation, 2,000 stay hidden until the end."
        ),
        aim="Reach the highest validation accuracy; the target is at least 96%.",
        workload=Workload("mnist_mlp", "mnist", 1, 2, EASY_SCALE),
        max_epochs=100,
        scale=EASY_SCALE,
        loss_levels=(1.48, 0.95, 0.61, 0.39, 0.25),
        weights=(("accuracy", 1.0),),
    ),
    "medium_fashion": Task(
        task_id="medium_fashion",
        title="Fashion Item Classifier",
        description=(
            "A small CNN with about 200k parameters learns clothing from 6,500 FashionMNIST "
            "images; 1,500 more measure validation, 2,000 stay hidden until the end."
        ),
        aim="Reach a high validation accuracy with a generalisation gap below 5%.",
        workload=Workload("fashion_cnn", "fashion_mnist", 2, 2, MEDIUM_SCALE),
        max_epochs=80,
        scale=MEDIUM_SCALE,
        loss_levels=(1.66, 1.2, 0.86, 0.62, 0.45),
        weights=(("accuracy", 0.6), ("generalization", 0.4)),
    ),
    "hard_cifar": Task(
        task_id="hard_cifar",
        title="CIFAR-10 Under Budget",
        description=(
            "A deeper CNN with about 500k parameters learns objects from 8,000 CIFAR-10 images; "
            "2,000 more measure validation, 2,000 stay hidden until the end."
        ),
        aim="Reach a high validation accuracy early and steadily, under a tight budget.",
        workload=Workload("cifar_cnn", "cifar10", 2, 2, HARD_SCALE),
        max_epochs=60,
        scale=HARD_SCALE,
        loss_levels=(2.07, 1.86, 1.67, 1.5, 1.35),
        weights=(("accuracy", 0.5), ("efficiency", 0.3), ("stability", 0.2)),
        reference_utility=HARD_REFERENCE_UTILITY,
    ),
}


def best_checkpoint(task: Task, history: History) -> EpochRecord | None:
    """The epoch that is graded, None before any: the one worth most on the task's scale.

    Where accuracy alone counts, that is the highest one. The earliest on a tie.
    """
    return reduce(task.workload.scale.better, history, None)


def grade(
    task: Task,
    history: History,
    submitted_by: Literal["agent", "call_limit"] = "agent",
    hidden_test_accuracy: float | None = None,
) -> Grade:
    """The final score of a whole episode's `history`, explained.

    `hidden_test_accuracy` is that of the best checkpoint, from whoever holds the weights.
    Raises ValueError when a task that counts it is not given it.
    """
    best = best_checkpoint(task, history)
    measured = [
        _UNTRAINED if best is None else _MEASURES[name](task, history, best, hidden_test_accuracy)
        for name, _ in task.weights
    ]
    components = tuple(
        GradeComponent(name=name, weight=weight, value=found.value, inputs=found.inputs)
        for (name, weight), found in zip(task.weights, measured, strict=True)
    )
    return Grade(
        task_id=task.task_id,
        task_version=task.version,
        score=_total(components),
        components=components,
        explanation=_explanation(components, measured, history, best),
        graded_epoch=None if best is None else best.epoch,
        val_accuracy=None if best is None else best.val_accuracy,
        generalization_gap=None if best is None else best.gap,
        hidden_test_accuracy=hidden_test_accuracy,
        hidden=dict(task.hidden),
        submitted_by=submitted_by,
    )


def utility(task: Task, history: History) -> float:
    """U: the mean over the whole budget of A(best accuracy so far), in 0..1.

    Epochs that were not run keep the last value. An epoch that diverged keeps it too, and counts 0
    when nothing was measured before it. Training on can therefore never lower it.
    """
    curve: list[float] = []
    highest = 0.0
    for record in history[: task.max_epochs]:
        if record.val_accuracy is not None:
            highest = max(highest, task.scale.accuracy(record.val_accuracy))
        curve.append(highest)
    curve.extend([highest] * (task.max_epochs - len(curve)))
    return sum(curve) / task.max_epochs


class _Measured(NamedTuple):
    """A component's value in 0..1, the numbers it was computed from, and those numbers in words."""

    value: float
    inputs: dict[str, float]
    evidence: str


_UNTRAINED = _Measured(0.0, {}, "")


def _total(components: Sequence[GradeComponent]) -> float:
    return clip(sum(part.weight * part.value for part in components))


def _explanation(
    components: Sequence[GradeComponent],
    measured: Sequence[_Measured],
    history: History,
    best: EpochRecord | None,
) -> str:
    if best is None:
        why = "every epoch diverged" if history else "nothing was trained"
        return f"Score 0 because {why}, so there is no checkpoint to grade."
    terms = " + ".join(f"{part.weight:g} x {part.name} {part.value:.3f}" for part in components)
    evidence = ", ".join(
        f"{part.name} from {found.evidence}"
        for part, found in zip(components, measured, strict=True)
    )
    return (
        f"Score {_total(components):.3f} = {terms} for the checkpoint of epoch {best.epoch}: "
        f"{evidence}."
    )


def _accuracy(task: Task, history: History, best: EpochRecord, hidden: float | None) -> _Measured:
    accuracy, scale = _val_accuracy(best), task.scale
    return _Measured(
        scale.accuracy(accuracy),
        {"val_accuracy": accuracy, "low": scale.low, "high": scale.high},
        f"val accuracy {accuracy:.2%} on the scale from {scale.low:.2%} to {scale.high:.2%}",
    )


def _generalization(
    task: Task, history: History, best: EpochRecord, hidden: float | None
) -> _Measured:
    accuracy = _val_accuracy(best)
    gap = NO_CREDIT_GAP if best.gap is None else best.gap
    learned = task.scale.learned(accuracy)
    return _Measured(
        task.scale.generalization(accuracy, gap),
        {"gap": gap, "learned": learned},
        f"a gap of {gap:.2%} and min(1, 2A) = {learned:.3f}",
    )


def _efficiency(task: Task, history: History, best: EpochRecord, hidden: float | None) -> _Measured:
    if task.reference_utility is None:
        raise ValueError(f"{task.task_id} weighs efficiency but has no reference utility")
    reached, reference = utility(task, history), task.reference_utility
    return _Measured(
        clip(reached / reference),
        {"utility": reached, "reference_utility": reference},
        f"a utility of {reached:.3f} against {reference:.3f}",
    )


def _stability(task: Task, history: History, best: EpochRecord, hidden: float | None) -> _Measured:
    losses = [r.clean_train_loss for r in history if r.clean_train_loss is not None]
    changes = [later - earlier for earlier, later in pairwise(losses)]
    rises = sum((change for change in changes if change > 0), 0.0)
    falls = sum((-change for change in changes if change < 0), 0.0)
    divergences = sum(record.diverged for record in history)
    learned = task.scale.learned(_val_accuracy(best))
    value = 0.0 if divergences or not falls else clip(1.0 - rises / falls) * learned
    return _Measured(
        value,
        {"rises": rises, "falls": falls, "divergences": float(divergences), "learned": learned},
        f"train loss rises of {rises:.3f} against falls of {falls:.3f} with {divergences} "
        f"divergence{'' if divergences == 1 else 's'} and min(1, 2A) = {learned:.3f}",
    )


def _val_accuracy(best: EpochRecord) -> float:
    return 0.0 if best.val_accuracy is None else best.val_accuracy


def _hidden_accuracy(
    task: Task, history: History, best: EpochRecord, hidden: float | None
) -> _Measured:
    if hidden is None:
        raise ValueError(f"{task.task_id} is graded on hidden images; their accuracy is missing")
    scale = task.scale
    return _Measured(
        scale.accuracy(hidden),
        {"hidden_test_accuracy": hidden, "low": scale.low, "high": scale.high},
        f"hidden-test accuracy {hidden:.2%} on the scale from {scale.low:.2%} to {scale.high:.2%}",
    )


_MEASURES: dict[ComponentName, Callable[[Task, History, EpochRecord, float | None], _Measured]] = {
    "accuracy": _accuracy,
    "generalization": _generalization,
    "efficiency": _efficiency,
    "stability": _stability,
    "hidden_accuracy": _hidden_accuracy,
}

# The same formulas for the agent: the letter, and what it stands for.
_FORMULAS: dict[ComponentName, Callable[[Task], tuple[str, str]]] = {
    "accuracy": lambda task: (
        "A",
        f"clip((validation accuracy - {task.scale.low:g}) / "
        f"({task.scale.high:g} - {task.scale.low:g}))",
    ),
    "generalization": lambda task: (
        "G",
        f"clip(({NO_CREDIT_GAP:g} - gap) / {NO_CREDIT_GAP - FULL_CREDIT_GAP:g}) x min(1, 2A), "
        "gap = train accuracy - validation accuracy, measured without dropout and augmentation",
    ),
    "efficiency": lambda task: (
        "E",
        f"min(1, U / {task.reference_utility:g}), U = mean over all {task.max_epochs} epochs of A "
        "of the best validation accuracy so far, epochs not run keeping the last value",
    ),
    "stability": lambda task: (
        "S",
        "clip(1 - rises / falls) x min(1, 2A), rises and falls summed over the changes of the "
        "train loss (without dropout and augmentation) from epoch to epoch; 0 after a divergence",
    ),
    "hidden_accuracy": lambda task: (
        "H",
        "clip((hidden-test accuracy - low) / (high - low)) on 2,000 images that only the grade "
        "looks at, where low is what a middling recipe reaches here and high what the best three "
        "do; the grade tells both",
    ),
}
