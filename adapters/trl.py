"""TRL: the environment of `GRPOTrainer(environment_factory=...)`, and a data set for it.

```python
trainer = GRPOTrainer(
    model="Qwen/Qwen3-0.6B",
    args=GRPOConfig(max_completion_length=4096, max_tool_calling_iterations=24),
    train_dataset=dataset("varied_mlp/train"),
    environment_factory=factory("http://localhost:8000"),
)
```

An instance of `TrainingRun` belongs to one rollout at a time. Its session begins in `reset` and
ends with the episode or in `get_reward`, which submits what a rollout that was cut off has trained.
Needs the extra `trl`, and a server with as many places as rollouts are generated at once.
"""

# TRL makes tools of all public functions of the class but `reset` and `get_reward`, and their
# schemas from annotations and docstrings.

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from ml_trainer_env.adapters import text
from ml_trainer_env.adapters.rollout import URL, Rollout, connecting
from ml_trainer_env.agents.session import Connect
from ml_trainer_env.models import BatchSize, Optimizer, Schedule
from ml_trainer_env.task_ids import TaskId, named

if TYPE_CHECKING:
    from datasets import Dataset

Reward = Literal["return", "score"]


class TrainingRun:
    """The training of a neural network, as tools for a language model."""

    def __init__(self, connect: Connect, reward: Reward = "return") -> None:
        self._rollout = Rollout(connect)
        self._reward = reward

    def reset(self, task_id: TaskId, seed: int = 0, **_: Any) -> str:
        """Begin the episode of a row of the data set, and tell of its task."""
        return "\n" + text.opening(self._rollout.begin(task_id, seed))

    def get_reward(self) -> float:
        """The return of the episode, or its final score."""
        grade = self._rollout.finish()
        return grade.score if self._reward == "score" else self._rollout.earned

    def configure_training(
        self,
        optimizer: Optimizer | None = None,
        learning_rate: float | None = None,
        batch_size: BatchSize | None = None,
        weight_decay: float | None = None,
        dropout: float | None = None,
        lr_schedule: Schedule | None = None,
        warmup_epochs: int | None = None,
        augmentation: bool | None = None,
        augmentation_strength: float | None = None,
    ) -> str:
        """Set or update the training configuration. Options that are left out keep their values.

        Args:
            optimizer: sgd has momentum 0.9.
            learning_rate: Base learning rate, above 0, at most 10.
            batch_size: Images per optimizer step.
            weight_decay: From 0 to 1.
            dropout: From 0 to 0.5.
            lr_schedule: How the rate changes over the remaining budget.
            warmup_epochs: From 0 to 20, for warmup_cosine.
            augmentation: Random shift, rotation, crop and flip.
            augmentation_strength: From 0 to 1.
        """
        options = {name: value for name, value in locals().items() if name != "self"}
        return self._call("configure_training", **options)

    def run_epochs(self, num_epochs: int) -> str:
        """Train.

        Args:
            num_epochs: From 1 to 20.
        """
        return self._call("run_epochs", num_epochs=num_epochs)

    def adjust_learning_rate(self, new_lr: float) -> str:
        """Change the learning rate of the next epoch; a running schedule keeps its shape.

        Args:
            new_lr: Above 0, at most 10.
        """
        return self._call("adjust_learning_rate", new_lr=new_lr)

    def toggle_augmentation(self, enabled: bool, strength: float | None = None) -> str:
        """Switch data augmentation.

        Args:
            enabled: Whether to augment.
            strength: From 0 to 1; left out, it stays.
        """
        return self._call("toggle_augmentation", enabled=enabled, strength=strength)

    def get_training_status(self) -> str:
        """Tell where the training stands. Free."""
        return self._call("get_training_status")

    def submit_model(self) -> str:
        """Submit the best checkpoint for its grade, and end the episode."""
        return self._call("submit_model")

    def _call(self, tool: str, **arguments: Any) -> str:
        if self._rollout.is_over:
            return text.OVER
        given = {name: value for name, value in arguments.items() if value is not None}
        return text.answer(self._rollout.call(tool, given))


def factory(
    url: str | None = URL, *, token: str | None = None, reward: Reward = "return"
) -> Callable[[], TrainingRun]:
    """For `environment_factory`: runs on the server at `url`, or in this process if that is None.

    `reward`: the sum of all rewards, the score among them, or the final score alone.
    """
    return lambda: TrainingRun(connecting(url, token), reward)


def dataset(*tasks: str, seeds: Iterable[int] = (0,)) -> Dataset:
    """A row for each task and seed, with the columns `prompt`, `task_id` and `seed`.

    `tasks`: ids, splits (`varied_mlp/train`) or parts of them (`varied_mlp/train/1000-4999`). The
    trainer shuffles the rows, and repeats each for its group. Raises ValueError for what names no
    task.
    """
    from datasets import Dataset

    prompt = [
        {"role": "system", "content": text.RULES},
        {"role": "user", "content": "Train this network:"},
    ]
    ids = [task_id for task in tasks for task_id in named(task)]
    rows = [{"prompt": prompt, "task_id": each, "seed": seed} for each in ids for seed in seeds]
    return Dataset.from_list(rows)
