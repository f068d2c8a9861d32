"""What the model is told: the task once, and where it stands, as few words as will do.

Nothing is repeated from earlier requests but one line a decision, so a prompt stays short however
long the episode is, and small models with a short context can play.
"""

from __future__ import annotations

from collections.abc import Sequence

from ml_trainer_env.agents.llm.chat import Message
from ml_trainer_env.models import MAX_EPOCHS_PER_CALL, TrainingStatus

LAST_LINE = 600  # characters on the last decision: enough for an error with its allowed values
OLD_LINE = 200  # and on one before it
WINDOWS_A_LOOK = 2

_RULES = (
    "You train a neural network by calling tools. {goal}\n"
    "Answer with exactly one tool call, never with prose. You have {decisions} decisions, and a "
    f"reply is one, even an invalid one. Configure first, then run epochs, up to "
    f"{MAX_EPOCHS_PER_CALL} at a time. After the last decision the best model is submitted for you."
)

_OPERATORS_RULES = (
    "You operate the training of a neural network on a cluster by calling tools. {goal}\n"
    "Answer with exactly one tool call, never with prose. You have {decisions} decisions, and a "
    f"reply is one, even an invalid one. Train {WINDOWS_A_LOOK} windows at a time as long as all "
    "is well. After the last decision it trains on to the deadline, and is submitted for you."
)


def messages(
    goal: str, status: TrainingStatus, log: Sequence[str], decision: int, decisions: int
) -> list[Message]:
    """The request for this decision, counted from 1. `log` has a line for each decision before."""
    parts = [f"Decision {decision} of {decisions}."]
    if log:
        lines = [cut(line, OLD_LINE) for line in log[:-1]] + [cut(log[-1], LAST_LINE)]
        parts.append("So far:\n" + "\n".join(f"{n}. {line}" for n, line in enumerate(lines, 1)))
    parts.append(f"Now: {state(status)}")
    rules = _OPERATORS_RULES if status.cluster else _RULES
    return [
        {"role": "system", "content": rules.format(goal=goal, decisions=decisions)},
        {"role": "user", "content": "\n".join(parts)},
    ]


def useful_tools(status: TrainingStatus) -> set[str]:
    """The tools to offer: none that would be refused here, and no status, which every prompt has.

    Decisions are few, and a small model picks what it is shown.
    """
    if status.cluster:
        return _of_an_operator(status)
    if status.current_config is None:
        return {"configure_training"}
    submit = {"submit_model"} if status.current_epoch else set[str]()
    if status.remaining_budget == 0:
        return submit
    change = {"configure_training", "adjust_learning_rate", "toggle_augmentation"}
    return submit | change | (set() if status.is_diverged else {"run_epochs"})


def _of_an_operator(status: TrainingStatus) -> set[str]:
    if status.remaining_budget == 0:
        return {"submit_model"}
    return {
        "run_epochs",
        "configure_training",
        "adjust_learning_rate",
        "restore_checkpoint",
        "configure_ranks",
        "configure_data",
        "run_diagnostic",
    }


def state(status: TrainingStatus) -> str:
    """Where training stands, in a few lines."""
    if status.cluster:
        return str(status.cluster)
    lines = [f"epoch {status.current_epoch} of {status.max_epochs}, {status.convergence_signal}"]
    if status.current_config is None:
        lines.append("nothing is configured yet")
    else:
        config = status.current_config
        shown = config.model_dump(exclude_defaults=True)
        options = shown | {"optimizer": config.optimizer, "learning_rate": config.learning_rate}
        shown_options = ", ".join(f"{k}={_short(v)}" for k, v in sorted(options.items()))
        lines.append(f"configuration: {shown_options}")
    if status.current_epoch:
        recent = ", ".join(_short(loss) for loss in status.val_loss_history_last_10)
        lines += [
            f"{metrics(status)}, train loss {_short(status.train_loss)}",
            f"best val accuracy {_short(status.best_val_accuracy)} at epoch "
            f"{status.best_val_epoch or '-'}",
            f"val loss of the last epochs: {recent}",
        ]
    return "\n".join(lines)


def metrics(status: TrainingStatus) -> str:
    """The measures of the present weights, on one line."""
    return (
        f"val accuracy {_short(status.val_accuracy)}, val loss {_short(status.val_loss)}, "
        f"gap {_short(status.generalization_gap)}"
    )


def outcome(call: str, status: TrainingStatus) -> str:
    """The line of a decision that was carried out."""
    told = f"{call}: {status.message}"
    if status.cluster:
        return "; ".join([told, *status.cluster.incidents, *status.cluster.finding[-1:]])
    return f"{told}; {metrics(status)}" if status.epochs_run and not status.is_diverged else told


def cut(text: str, length: int) -> str:
    """`text`, or its beginning."""
    return text if len(text) <= length else text[: length - 3] + "..."


def _short(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
