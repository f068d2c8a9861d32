"""TRL: the environment of `GRPOTrainer(environment_factory=...)`, and a data set for it.

```python
trainer = GRPOTrainer(
    model="Qwen/Qwen3-0.6B",
    args=GRPOConfig(max_completion_length=4096, max_tool_calling_iterations=24),
    train_dataset=dataset("varied_mlp/train"),
    environment_factory=factory("http://localhost:8000"),
)
```

Clusters have tools of their own: `factory(url, cluster=True)` with `dataset("cluster/train")`.

An instance of `TrainingRun` or `ClusterRun` belongs to one rollout at a time. Its session begins in
`reset` and ends with the episode or in `get_reward`, which submits what a rollout that was cut off
has trained.
Needs the extra `trl`, and a server with as many places as rollouts are generated at once.
"""

# TRL makes tools of all public functions of the class but `reset` and `get_reward`, and their
# schemas from annotations and docstrings.

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ml_trainer_env.adapters import text
from ml_trainer_env.adapters.rollout import URL, Rollout, connecting
from ml_trainer_env.agents.session import Connect
from ml_trainer_env.events import Diagnosis
from ml_trainer_env.models import BatchSize, Optimizer, Schedule
from ml_trainer_env.task_ids import TaskId, is_cluster, named

if TYPE_CHECKING:
    from datasets import Dataset

Reward = Literal["return", "score"]


class _Run:
    """What both kinds of episodes have in common."""

    _of_clusters: ClassVar[bool]

    def __init__(self, connect: Connect, reward: Reward = "return") -> None:
        self._rollout = Rollout(connect)
        self._reward = reward

    def reset(self, task_id: TaskId, seed: int = 0, **_: Any) -> str:
        """Begin the episode of a row of the data set, and tell of its task.

        Raises ValueError for one whose tools are others.
        """
        if is_cluster(task_id) != self._of_clusters:
            kind = "a cluster" if is_cluster(task_id) else "no cluster"
            need = f"cluster={is_cluster(task_id)}"
            raise ValueError(f"{task_id} is {kind}, and has other tools: factory(..., {need})")
        return "\n" + text.opening(self._rollout.begin(task_id, seed))

    def get_reward(self) -> float:
        """The return of the episode, or its final score."""
        grade = self._rollout.finish()
        return grade.score if self._reward == "score" else self._rollout.earned

    def adjust_learning_rate(self, new_lr: float) -> str:
        """Change the learning rate at once; a running schedule keeps its shape.

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

    def _call(self, tool: str, **arguments: Any) -> str:
        if self._rollout.is_over:
            return text.OVER
        given = {name: value for name, value in arguments.items() if value is not None}
        return text.answer(self._rollout.call(tool, given))


class TrainingRun(_Run):
    """The training of a neural network, as tools for a language model."""

    _of_clusters = False

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

    def submit_model(self) -> str:
        """Submit the best checkpoint for its grade, and end the episode."""
        return self._call("submit_model")


class ClusterRun(_Run):
    """The operation of a cluster, as tools for a language model."""

    _of_clusters = True

    def configure_training(
        self,
        learning_rate: float | None = None,
        lr_schedule: Literal["constant", "cosine"] | None = None,
        warmup: float | None = None,
        weight_decay: float | None = None,
        gradient_clip: float | None = None,
        checkpoint_every: int | None = None,
    ) -> str:
        """Set options of the training from the next step on. Those left out keep their values.

        Args:
            learning_rate: The peak of the schedule, above 0, at most 10.
            lr_schedule: Over the clock; cosine goes to a twentieth at the deadline.
            warmup: Share of the time in which the rate rises, from 0 to 0.5.
            weight_decay: From 0 to 1.
            gradient_clip: Largest norm of the gradient, up to 1000; 0 does not clip.
            checkpoint_every: Steps, from 5 to 500.
        """
        options = {name: value for name, value in locals().items() if name != "self"}
        return self._call("configure_training", **options)

    def run_epochs(self, num_epochs: int) -> str:
        """Train windows of 25 steps. The deadline ends it, and so does an incident.

        Args:
            num_epochs: Windows, from 1 to 20.
        """
        return self._call("run_epochs", num_epochs=num_epochs)

    def submit_model(self) -> str:
        """Submit the model as it stands for its grade, and end the episode."""
        return self._call("submit_model")

    def restore_checkpoint(
        self, step: int, skip_batches: int | None = None, load_optimizer: bool | None = None
    ) -> str:
        """Go back to a checkpoint, on all ranks: 9 s. The clock goes on.

        Args:
            step: The latest checkpoint up to here is taken.
            skip_batches: Batches after it that are not to be read, up to 1000.
            load_optimizer: False: its moments begin anew.
        """
        return self._call(
            "restore_checkpoint",
            step=step,
            skip_batches=skip_batches,
            load_optimizer=load_optimizer,
        )

    def configure_ranks(
        self,
        exclude: list[int] | None = None,
        use_spare: list[int] | None = None,
        shares: list[int] | None = None,
    ) -> str:
        """Start the process group again: 9 s, 20 more with a spare. Weights are broadcast.

        Args:
            exclude: All ranks that are to be out, less than half; [] takes all back.
            use_spare: Ranks that get a fresh host.
            shares: Micro-shards of each working rank, in order; left out, equal shares.
        """
        return self._call("configure_ranks", exclude=exclude, use_spare=use_spare, shares=shares)

    def configure_data(
        self, quarantine_shards: list[int] | None = None, reshuffle: bool | None = None
    ) -> str:
        """Start the data loaders again: 3 s.

        Args:
            quarantine_shards: All data shards that are to be out, 4 at most; left out, it stays.
            reshuffle: Read on in a new order.
        """
        return self._call(
            "configure_data", quarantine_shards=quarantine_shards, reshuffle=reshuffle
        )

    def run_diagnostic(self, kind: Diagnosis) -> str:
        """Look closer, which takes 0.5 to 9 s; the training stands where it stood.

        Args:
            kind: replay: the last window's first steps on other hosts; weight_checksum: whether
                ranks are in step; shard_loss: the model's loss on each data shard;
                flight_recorder: who answers, and who was lost; verify_checkpoint: which are whole.
        """
        return self._call("run_diagnostic", kind=kind)


def factory(
    url: str | None = URL,
    *,
    token: str | None = None,
    reward: Reward = "return",
    cluster: bool = False,
) -> Callable[[], TrainingRun | ClusterRun]:
    """For `environment_factory`: runs on the server at `url`, or in this process if that is None.

    `reward`: the sum of all rewards, the score among them, or the final score alone.
    `cluster`: with the tools of a cluster, for a data set of clusters.
    """
    kind = ClusterRun if cluster else TrainingRun
    return lambda: kind(connecting(url, token), reward)


def dataset(*tasks: str, seeds: Iterable[int] = (0,)) -> Dataset:
    """A row for each task and seed, with the columns `prompt`, `task_id` and `seed`.

    `tasks`: ids, splits (`varied_mlp/train`) or parts of them (`varied_mlp/train/1000-4999`). The
    trainer shuffles the rows, and repeats each for its group. Raises ValueError for what names no
    task, and for clusters among single networks: a trainer gives all rows the same tools.
    """
    from datasets import Dataset

    ids = [task_id for task in tasks for task_id in named(task)]
    clusters = sum(map(is_cluster, ids))
    if 0 < clusters < len(ids):
        raise ValueError(
            f"{clusters} of {len(ids)} tasks are clusters, which have other tools than single "
            "networks: make a data set of each kind"
        )
    rules, card = (
        (text.OPERATORS_RULES, "Operate this cluster:")
        if clusters
        else (text.RULES, "Train this network:")
    )
    prompt = [{"role": "system", "content": rules}, {"role": "user", "content": card}]
    rows = [{"prompt": prompt, "task_id": each, "seed": seed} for each in ids for seed in seeds]
    return Dataset.from_list(rows)
