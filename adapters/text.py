"""What a language model is told: few words, for all turns of an episode share its context."""

# pyright: strict, reportMissingTypeStubs=false
# OpenEnv has its types in the code.

from __future__ import annotations

from ml_trainer_env.agents.llm.prompt import metrics
from ml_trainer_env.cluster_status import ClusterStatus
from ml_trainer_env.models import MAX_EPOCHS_PER_CALL, TrainingStatus
from ml_trainer_env.wire import ToolObservation

RULES = (
    "You run the training of a neural network by calling tools, one a reply. Configure it, run a "
    f"few epochs (up to {MAX_EPOCHS_PER_CALL} at a time), look at the curve, change what should be "
    "better, train on, and submit once the epochs are spent. Training on never lowers the score: "
    "the best checkpoint is graded. The good learning rate may be far from the usual ones."
)
OPERATORS_RULES = (
    "You operate the training of a neural network on a cluster by calling tools, one a reply. "
    "Train one or two windows at a time and compare ranks, data shards and steps; where something "
    "stands out, a diagnosis tells more. Act on what it shows, or leave it alone: whatever you do "
    "takes seconds of the clock, and some things pass by themselves. Train on to the deadline, "
    "then submit: the model as it then stands is graded, and time that is left is given away."
)
OVER = "The episode is over: nothing can be done any more. Answer without a tool call."

_SHORT = {  # names of options, as a line of text has them
    "optimizer": "optimizer",
    "learning_rate": "rate",
    "batch_size": "batch",
    "weight_decay": "decay",
    "dropout": "dropout",
    "lr_schedule": "schedule",
}


def rules(status: TrainingStatus) -> str:
    """What to tell whoever plays the episode that begins with `status`."""
    return OPERATORS_RULES if status.cluster else RULES


def opening(status: TrainingStatus) -> str:
    """The task's card, and where a run that is taken over stands."""
    if status.cluster:
        return f"{status.message}\n{_calls(status)}\n{status.cluster}"
    told = _progress(status, len(status.val_loss_history_last_10)) + _options(status)
    return f"{status.message}\n{'; '.join(told)}"


def answer(observation: ToolObservation) -> str:
    """What a call has brought, or why it was refused."""
    if observation.error is not None:
        return f"error: {observation.error.message}"
    status = observation.status
    assert status is not None
    if status.grade is not None:
        return f"The episode is over. {status.grade.explanation}"
    if observation.tool_name == "get_training_status":
        return opening(status)
    if status.cluster:
        return _of_cluster(status, status.cluster)
    if not status.epochs_run:
        return f"{status.message}; {_calls(status)}"
    return f"{status.message}\n{'; '.join(_progress(status, status.epochs_run))}"


def _of_cluster(status: TrainingStatus, cluster: ClusterStatus) -> str:
    """Windows that were told before are not told again."""
    shown = cluster if status.epochs_run else cluster.model_copy(update={"windows": ()})
    return f"{status.message}; {_calls(status)}\n{shown}"


def _progress(status: TrainingStatus, epochs: int) -> list[str]:
    """How training goes, with the validation losses of the last so many epochs."""
    told = [f"epoch {status.current_epoch} of {status.max_epochs}", _calls(status)]
    if not status.current_epoch:
        return told
    best = status.best_val_accuracy
    if best is not None:
        told.append(f"best val accuracy {best:.4g} at epoch {status.best_val_epoch}")
    if status.is_diverged:
        return [*told, "diverged: set another learning rate"]
    told += [
        status.convergence_signal,
        metrics(status),
        f"train accuracy {_value(status.train_accuracy)}, train loss {_value(status.train_loss)}",
    ]
    if epochs > 1:
        losses = " ".join(_value(loss) for loss in status.val_loss_history_last_10[-epochs:])
        told.append(f"val loss by epoch {losses}")
    return told


def _options(status: TrainingStatus) -> list[str]:
    if status.current_config is None:
        return ["nothing is configured yet"]
    values = status.current_config.model_dump()
    told = [f"{short} {_value(values[name])}" for name, short in _SHORT.items()]
    if status.current_config.augmentation:
        told.append(f"augmentation {_value(status.current_config.augmentation_strength)}")
    return [", ".join(told)]


def _calls(status: TrainingStatus) -> str:
    return f"{status.tool_calls_left} calls left"


def _value(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
