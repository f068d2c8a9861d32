"""Every value that crosses a boundary: configuration, plan, record, status, reward, grade.

The only home of names, bounds and defaults. Pydantic and the standard library, nothing else,
so that a client can import it in milliseconds. All models are frozen, reject unknown fields,
and contain no NaN: a number that does not exist is `None`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from ml_trainer_env.cluster_status import ClusterStatus
from ml_trainer_env.events import Event, WindowReport
from ml_trainer_env.task_ids import TaskId
from ml_trainer_env.values import LearningRate, Model, WeightDecay

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "step", "cosine", "warmup_cosine"]
BatchSize = Literal[32, 64, 128, 256]
Signal = Literal[
    "not_started",
    "warming_up",
    "improving",
    "plateaued",
    "overfitting",
    "stalling",
    "diverged",
]
DEFAULT_TASK_ID: TaskId = "easy_mnist"
MAX_EPOCHS_PER_CALL = 20
MAX_TOOL_CALLS = 50  # per classic episode; get_training_status and listing tools are free
INSTANCE_TOOL_CALLS = 20  # per episode of an instance
CLUSTER_TOOL_CALLS = 40  # per episode of a cluster
HISTORY_TAIL = 10
SERVER_BUSY = "the server is busy"  # so begins the refusal of a call that may be made again later
MAX_SEED = 2**32 - 1  # torch generators use 32 bits: a wider seed would repeat a narrower one

Dropout = Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
WarmupEpochs = Annotated[int, Field(ge=0, le=20)]
EpochCount = Annotated[int, Field(ge=1, le=MAX_EPOCHS_PER_CALL)]


class TrainingConfig(Model):
    """What the agent has asked for. The defaults are those of an unconfigured option.

    Strict: `"64"` is not 64, and `True` is not 1.
    """

    model_config = ConfigDict(strict=True)

    optimizer: Annotated[
        Optimizer, Field(description="sgd has momentum 0.9; a new type starts with fresh moments")
    ] = "adam"
    learning_rate: Annotated[
        LearningRate, Field(description="base learning rate, the peak of the schedule")
    ] = 0.001
    batch_size: Annotated[BatchSize, Field(description="images per optimizer step")] = 64
    weight_decay: Annotated[
        WeightDecay, Field(description="L2 for sgd and adam, decoupled for adamw")
    ] = 0.0
    dropout: Annotated[Dropout, Field(description="probability of dropping a unit")] = 0.0
    lr_schedule: Annotated[
        Schedule,
        Field(
            description="constant; step: x0.1 every third of the remaining budget; cosine: to zero "
            "over the remaining budget; warmup_cosine: linear warm-up, then cosine"
        ),
    ] = "constant"
    warmup_epochs: Annotated[
        WarmupEpochs, Field(description="epochs of linear warm-up, for warmup_cosine")
    ] = 5
    augmentation: Annotated[
        bool, Field(description="random shift, rotation, crop, and flip where the class allows it")
    ] = False
    augmentation_strength: Annotated[
        Strength, Field(description="0 changes nothing, 1 is the strongest")
    ] = 0.5


class EpochPlan(Model):
    """What one epoch really uses; with the state before it, all that its result depends on."""

    optimizer: Optimizer
    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    batch_size: BatchSize
    weight_decay: WeightDecay
    dropout: Dropout
    augmentation: Annotated[Strength, Field(description="strength in force; 0 is off")]


class EpochRecord(Model):
    """One finished epoch: its plan and what was measured. Losses are mean cross-entropy in nats.

    Every metric is `None` when the epoch diverged.
    """

    epoch: Annotated[int, Field(ge=1, description="position in the budget, from 1")]
    plan: EpochPlan | Event = Field(description="of a cluster: an event")
    train_loss: float | None = Field(description="running average over the training epoch")
    train_accuracy: float | None = Field(description="running average over the training epoch")
    val_loss: float | None
    val_accuracy: float | None
    clean_train_loss: float | None = Field(
        description="eval mode, no augmentation, on the fixed probe of train images"
    )
    clean_train_accuracy: float | None
    window: WindowReport | None = Field(default=None, description="of a cluster: all that was seen")

    @property
    def diverged(self) -> bool:
        return self.val_loss is None

    @property
    def learning_rate(self) -> float | None:
        """That was in force; None where nothing was trained."""
        if isinstance(self.plan, EpochPlan):
            return self.plan.learning_rate
        return self.window and self.window.learning_rate

    @property
    def gap(self) -> float | None:
        """Generalisation gap: clean train accuracy - validation accuracy."""
        if self.clean_train_accuracy is None or self.val_accuracy is None:
            return None
        return self.clean_train_accuracy - self.val_accuracy


class EpochReport(Model):
    """An epoch that an action trained, for operators and records: never part of an observation.

    An agent that saw the seconds would see who had trained the same epoch before.
    """

    record: EpochRecord
    seconds: float = Field(description="from asking for it until it was there")
    shared: bool = Field(description="taken from another session that had trained it")


class RewardTerms(Model):
    """The step's reward by name; `total` is their sum."""

    progress: float = 0.0
    convergence: float = 0.0
    divergence: float = 0.0
    overfitting: float = 0.0
    submission: float = 0.0

    @property
    def total(self) -> float:
        return (
            self.progress + self.convergence + self.divergence + self.overfitting + self.submission
        )


class GradeComponent(Model):
    """One term of the final score: `weight * value`, with the numbers it was computed from."""

    name: str
    weight: float
    value: Annotated[float, Field(ge=0, le=1)]
    inputs: dict[str, float]


class Grade(Model):
    """The final score, explained. Belongs to the checkpoint that scores best on validation."""

    task_id: TaskId
    task_version: int
    score: Annotated[float, Field(ge=0, le=1)]
    components: tuple[GradeComponent, ...]
    explanation: str
    graded_epoch: int | None = Field(description="None when nothing was trained")
    val_accuracy: float | None
    generalization_gap: float | None
    hidden_test_accuracy: float | None = Field(
        default=None, description="of the graded checkpoint, first shown here"
    )
    hidden: dict[str, str | float] = Field(
        default_factory=dict, description="what the task had not told, first shown here"
    )
    submitted_by: Literal["agent", "call_limit"] = "agent"
    attempt: Annotated[
        int, Field(ge=1, description="of this session on this task and seed, counted from 1")
    ] = 1


class CurrentConfig(TrainingConfig):
    """The configuration with the learning rate that the next epoch will use."""

    learning_rate_in_force: float


class TrainingStatus(Model):
    """What the agent sees after every action. Metrics are `None` before the first epoch."""

    task_id: TaskId
    message: str = Field(description="one line: what this action did")
    current_epoch: int = Field(description="epochs of the budget spent so far")
    max_epochs: int
    remaining_budget: int
    epochs_run: int = Field(description="epochs trained by this action")
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    best_val_accuracy: float | None
    best_val_epoch: int | None
    graded_epoch: int | None = Field(
        default=None, description="whose checkpoint submit_model would have graded, the best so far"
    )
    generalization_gap: float | None
    loss_history_last_10: tuple[float | None, ...]
    val_loss_history_last_10: tuple[float | None, ...]
    convergence_signal: Signal
    is_diverged: bool
    current_config: CurrentConfig | None = Field(description="None until the first configuration")
    cluster: ClusterStatus | None = Field(default=None, description="of a task that has one")
    tool_calls_left: int
    reward: float = Field(description="reward of this action, the sum of reward_terms")
    reward_terms: RewardTerms
    done: bool
    grade: Grade | None = Field(default=None, description="after the end of the episode")

    def __str__(self) -> str:
        """A few lines to read. `repr` has every field, `model_dump_json` is for machines."""
        if self.cluster:
            return self._of_cluster(self.cluster)
        terms = [f"{name} {value:+.4f}" for name, value in self.reward_terms if value]
        lines = [
            f"{self.task_id}: {self.message}",
            f"epoch {self.current_epoch} of {self.max_epochs}, {self.convergence_signal}, "
            f"{self.tool_calls_left} tool calls left",
        ]
        if self.current_epoch:
            lines += [
                f"train loss {_shown(self.train_loss)}, accuracy {_shown(self.train_accuracy)}; "
                f"val loss {_shown(self.val_loss)}, accuracy {_shown(self.val_accuracy)}; "
                f"gap {_shown(self.generalization_gap)}",
                f"best val accuracy {_shown(self.best_val_accuracy)} "
                f"at epoch {self.best_val_epoch or '-'}; to be graded: epoch "
                f"{self.graded_epoch or '-'}",
            ]
        if self.current_config is not None:
            lines.append(", ".join(f"{name} {value}" for name, value in self.current_config))
        lines.append(f"reward {self.reward:+.4f}" + (f" ({', '.join(terms)})" if terms else ""))
        if self.grade is not None:
            hidden = _shown(self.grade.hidden_test_accuracy)
            lines.append(f"{self.grade.explanation} Hidden-test accuracy {hidden}.")
        return "\n  ".join(lines)

    def _of_cluster(self, cluster: ClusterStatus) -> str:
        told = [f"{self.message}; {self.tool_calls_left} tool calls left"]
        if self.grade is not None:
            return f"{told[0]}\n{self.grade.explanation}"
        return "\n".join([*told, str(cluster)])


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.4f}"
