"""The tools as tables, six of one network and ten of a cluster: name, words, arguments, action.

Every door (the step over a WebSocket or HTTP, `/mcp`, a standard MCP client, in process) calls
`call`, so an argument is checked in one place and in one way. The arguments of
`configure_training` are the fields of `models.TrainingConfig`, of a cluster those of
`cluster_status.ClusterConfig`; no bound or default is repeated.

Which tools there are is a matter of the episode: before any has begun, the six. All clusters have
the same ten, whatever is wrong with them, so the list gives nothing away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ml_trainer_env.cluster_status import ClusterConfig
from ml_trainer_env.events import Diagnosis, Rank, Shard, Share
from ml_trainer_env.models import (
    EpochCount,
    LearningRate,
    Strength,
    TrainingConfig,
    TrainingStatus,
)
from ml_trainer_env.server.episode.cluster import ClusterEpisode
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.episode.single import SingleEpisode
from ml_trainer_env.server.episode.situation import Situation
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.runtime.asking import never
from ml_trainer_env.server.runtime.runner import Runner
from ml_trainer_env.server.tasks import Task
from ml_trainer_env.server.validation import ActionError, json_schema, shown, validate

Stop = Callable[[], bool]

RUN = "run_epochs"
FREE = "get_training_status"  # the one tool that does not count as a call


class UnknownTool(ActionError):
    """No tool has this name."""


class _Arguments(BaseModel):
    """Arguments of one tool: no coercion, no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RunEpochs(_Arguments):
    """Arguments of run_epochs."""

    num_epochs: Annotated[EpochCount, Field(description="epochs of real training to run")]


class AdjustLearningRate(_Arguments):
    """Arguments of adjust_learning_rate."""

    new_lr: Annotated[LearningRate, Field(description="learning rate of the next epoch")]


class ToggleAugmentation(_Arguments):
    """Arguments of toggle_augmentation."""

    enabled: Annotated[bool, Field(description="true: on, false: off")]
    strength: Annotated[
        Strength, Field(description="0 changes nothing, 1 is the strongest; left out: stays")
    ] = TrainingConfig.model_fields["augmentation_strength"].default


class NoArguments(_Arguments):
    """Arguments of a tool that takes none."""


class RunWindows(_Arguments):
    """Arguments of run_epochs, of a cluster."""

    num_epochs: Annotated[EpochCount, Field(description="windows of 25 steps to run")]


class AdjustRateOfStep(_Arguments):
    """Arguments of adjust_learning_rate, of a cluster."""

    new_lr: Annotated[LearningRate, Field(description="learning rate of the next step")]


class RestoreCheckpoint(_Arguments):
    """Arguments of restore_checkpoint."""

    step: Annotated[
        int, Field(ge=0, le=10_000, description="the latest checkpoint up to here is taken")
    ]
    skip_batches: Annotated[
        int, Field(ge=0, le=1000, description="batches after it that are not to be read")
    ] = 0
    load_optimizer: Annotated[bool, Field(description="false: its moments begin anew")] = True


class ConfigureRanksArguments(_Arguments):
    """Arguments of configure_ranks."""

    exclude: Annotated[
        list[Rank] | None,
        Field(description="all ranks that are to be out; [] takes all back; left out: stays"),
    ] = None
    use_spare: Annotated[list[Rank] | None, Field(description="ranks that get a fresh host")] = None
    shares: Annotated[
        list[Share] | None,
        Field(description="micro-shards of each working rank, in order; left out: equal shares"),
    ] = None


class ConfigureDataArguments(_Arguments):
    """Arguments of configure_data."""

    quarantine_shards: Annotated[
        list[Shard] | None,
        Field(description="all data shards that are to be out, 4 at most; left out: stays"),
    ] = None
    reshuffle: Annotated[bool, Field(description="read on in a new order")] = False


class RunDiagnostic(_Arguments):
    """Arguments of run_diagnostic."""

    kind: Annotated[
        Diagnosis,
        Field(
            description="replay: the last window's first steps on other hosts; weight_checksum: "
            "whether ranks are in step; shard_loss: the model's loss on each data shard; "
            "flight_recorder: who answers, and who was lost; verify_checkpoint: which are whole"
        ),
    ]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One tool: what the agent is told of it, what it takes, and what it does to an episode."""

    name: str
    description: str
    arguments: type[BaseModel]
    act: Callable[[Any, Any, Stop], TrainingStatus]
    """Of an episode that has the tool, its arguments, and what ends training early."""

    @property
    def input_schema(self) -> dict[str, Any]:
        return json_schema(self.arguments)


def _configure(episode: Episode, given: BaseModel, stop: Stop) -> TrainingStatus:
    names = [name for name in type(given).model_fields if name in given.model_fields_set]
    return episode.configure_training({name: getattr(given, name) for name in names})


def _toggle(episode: Episode, given: ToggleAugmentation, stop: Stop) -> TrainingStatus:
    strength = given.strength if "strength" in given.model_fields_set else None
    return episode.toggle_augmentation(given.enabled, strength)


def _run(episode: Episode, given: RunEpochs | RunWindows, stop: Stop) -> TrainingStatus:
    return episode.run_epochs(given.num_epochs, stop)


def _adjust(
    episode: Episode, given: AdjustLearningRate | AdjustRateOfStep, stop: Stop
) -> TrainingStatus:
    return episode.adjust_learning_rate(given.new_lr)


TOOLS: dict[str, ToolSpec] = {
    spec.name: spec
    for spec in (
        ToolSpec(
            "configure_training",
            "Set or update the training configuration. An option that is left out keeps its "
            "present value (at first: its default). Weights, history and the epoch budget stay. "
            "After a divergence, training resumes from the best checkpoint.",
            TrainingConfig,
            _configure,
        ),
        ToolSpec(
            RUN,
            "Run epochs of real training and see the metrics. Needs a configuration. More than "
            "the remaining budget trains what remains; a divergence stops training.",
            RunEpochs,
            _run,
        ),
        ToolSpec(
            "adjust_learning_rate",
            "Change the learning rate mid-training: the next epoch uses exactly new_lr, and a "
            "running schedule keeps its shape from there. Needs a configuration. After a "
            "divergence, training resumes from the best checkpoint.",
            AdjustLearningRate,
            _adjust,
        ),
        ToolSpec(
            "toggle_augmentation",
            "Switch data augmentation on or off (random shift, rotation, crop, and flip where "
            "the class allows it). Needs a configuration.",
            ToggleAugmentation,
            _toggle,
        ),
        ToolSpec(
            FREE,
            "Show the current metrics and configuration. Free: does not count as a tool call.",
            NoArguments,
            lambda episode, given, stop: episode.get_training_status(),
        ),
        ToolSpec(
            "submit_model",
            "Submit for final grading and end the episode. The checkpoint that is worth most on "
            "validation is graded. The last tool call submits by itself.",
            NoArguments,
            lambda episode, given, stop: episode.submit_model(),
        ),
    )
}


def _restore(episode: ClusterEpisode, given: RestoreCheckpoint, stop: Stop) -> TrainingStatus:
    return episode.restore_checkpoint(given.step, given.skip_batches, given.load_optimizer)


def _ranks(episode: ClusterEpisode, given: ConfigureRanksArguments, stop: Stop) -> TrainingStatus:
    return episode.configure_ranks(given.exclude, given.use_spare or (), given.shares)


def _data(episode: ClusterEpisode, given: ConfigureDataArguments, stop: Stop) -> TrainingStatus:
    return episode.configure_data(given.quarantine_shards, given.reshuffle)


CLUSTER_TOOLS: dict[str, ToolSpec] = {
    spec.name: spec
    for spec in (
        ToolSpec(
            "configure_training",
            "Set or update the training configuration, from the next step on. An option that is "
            "left out keeps its present value.",
            ClusterConfig,
            _configure,
        ),
        ToolSpec(
            RUN,
            "Train windows of 25 steps and see the curves, rank by rank. The deadline ends it, and "
            "so does an incident.",
            RunWindows,
            _run,
        ),
        ToolSpec(
            "adjust_learning_rate",
            "Change the learning rate: the next step uses exactly new_lr, and the schedule keeps "
            "its shape from there.",
            AdjustRateOfStep,
            _adjust,
        ),
        ToolSpec(
            "toggle_augmentation",
            "Switch data augmentation on or off: a few characters of the input are replaced by "
            "others.",
            ToggleAugmentation,
            _toggle,
        ),
        TOOLS[FREE],
        ToolSpec(
            "submit_model",
            "Submit the model as it stands for final grading and end the episode; time that is "
            "left is given away. The last tool call submits by itself.",
            NoArguments,
            TOOLS["submit_model"].act,
        ),
        ToolSpec(
            "restore_checkpoint",
            "Go back to a checkpoint, on all ranks: 9 s. The clock goes on.",
            RestoreCheckpoint,
            _restore,
        ),
        ToolSpec(
            "configure_ranks",
            "Start the process group again: 9 s, 20 more with a spare. Weights are broadcast by "
            "the first working rank. Excluded ranks' work moves on; less than half may be out.",
            ConfigureRanksArguments,
            _ranks,
        ),
        ToolSpec(
            "configure_data",
            "Start the data loaders again, without some data shards or in a new order: 3 s.",
            ConfigureDataArguments,
            _data,
        ),
        ToolSpec(
            "run_diagnostic",
            "Look closer, which takes 0.5 to 9 s; the training stands where it stood.",
            RunDiagnostic,
            lambda episode, given, stop: episode.run_diagnostic(given.kind),
        ),
    )
}
NAMES = tuple(CLUSTER_TOOLS)  # of all tools there are


def begun(
    task: Task,
    start: Run | Situation,
    runner: Runner,
    note: Callable[[Situation], None] | None = None,
) -> Episode:
    """An episode of `task`, of its kind; with a situation for a start it goes on from there."""
    kind = ClusterEpisode if task.cluster else SingleEpisode
    return kind(task, start, runner, note)


def tools_of(episode: Episode | None) -> dict[str, ToolSpec]:
    """The tools of an episode; before any has begun, the six."""
    return CLUSTER_TOOLS if isinstance(episode, ClusterEpisode) else TOOLS


def checked(
    name: str, arguments: Mapping[str, Any], known: Mapping[str, ToolSpec] = TOOLS
) -> tuple[ToolSpec, BaseModel]:
    """The tool, and its arguments as it takes them. Raises `UnknownTool`, `InvalidArguments`."""
    spec = known.get(name)
    if spec is None:
        only = ", which only clusters have" if name in CLUSTER_TOOLS else ""
        raise UnknownTool(f"no tool is named {shown(name)}{only}; the tools are {', '.join(known)}")
    return spec, validate(spec.arguments, arguments, subject=name)


def call(
    episode: Episode | None, name: str, arguments: Mapping[str, Any], stop: Stop = never
) -> TrainingStatus:
    """Do what the agent asks. `stop` is asked at every epoch boundary and ends training early.

    Raises `ActionError` (`UnknownTool`, `InvalidArguments`) for what cannot be done; nothing has
    changed then. Any other exception is our fault; nothing has changed then either.
    """
    spec, given = checked(name, arguments, tools_of(episode))
    if episode is None:
        raise ActionError('no episode has begun: reset first, e.g. reset(task_id="easy_mnist")')
    return spec.act(episode, given, stop)
