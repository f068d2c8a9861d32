"""The scripted agent: one recipe for each task, carried out with the two decisions that it needs.

It sees what any client sees, a `TrainingStatus`, and answers its next tool call. It keeps no
memory, so a status decides everything: the same episode is played in the same way again, and an
interrupted one is taken up where it stands.
"""

from __future__ import annotations

from ml_trainer_env.agents.moves import SUBMIT, Move, configure, cooled, run
from ml_trainer_env.models import (
    TrainingConfig,
    TrainingStatus,
)
from ml_trainer_env.task_ids import TaskId

# The reference recipes: the best that the search of docs/calibration.md found.
RECIPES: dict[TaskId, TrainingConfig] = {
    "easy_mnist": TrainingConfig(
        optimizer="adamw",
        learning_rate=0.0025,
        batch_size=128,
        weight_decay=0.19,
        dropout=0.12,
        lr_schedule="warmup_cosine",
        warmup_epochs=8,
        augmentation=True,
        augmentation_strength=0.56,
    ),
    "medium_fashion": TrainingConfig(
        optimizer="adamw",
        learning_rate=0.0055,
        weight_decay=0.028,
        dropout=0.48,
        lr_schedule="warmup_cosine",
        warmup_epochs=4,
        augmentation=True,
        augmentation_strength=0.32,
    ),
    "hard_cifar": TrainingConfig(
        optimizer="adamw",
        learning_rate=0.0029,
        weight_decay=0.083,
        dropout=0.27,
        lr_schedule="warmup_cosine",
        warmup_epochs=4,
        augmentation=True,
        augmentation_strength=0.99,
    ),
}

EPOCHS_PER_CALL: dict[TaskId, int] = {  # a few seconds each, so that one can watch
    "easy_mnist": 10,
    "medium_fashion": 10,
    "hard_cifar": 5,
}


def scripted(status: TrainingStatus) -> Move:
    """Configure the task's recipe, train the whole budget in short runs, submit.

    Training on never lowers a final score, so only a spent budget ends the episode. After a
    divergence the rate goes down, and with it what is left of the schedule. Raises ValueError when
    the episode is over.
    """
    if status.done:
        raise ValueError("the episode is over: there is no next move")
    if status.current_config is None:
        recipe = RECIPES[status.task_id]
        return configure(**recipe.model_dump(exclude_unset=True))
    if status.remaining_budget == 0:
        return SUBMIT
    if status.is_diverged:
        return cooled(status.current_config)
    return run(min(EPOCHS_PER_CALL[status.task_id], status.remaining_budget))
