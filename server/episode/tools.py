"""The six tools as one table: name, description, arguments, action.

Every door (the step over a WebSocket or HTTP, `/mcp`, a standard MCP client, in process) calls
`call`, so an argument is checked in one place and in one way. The arguments of
`configure_training` are the fields of `models.TrainingConfig`; no bound or default is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ml_trainer_env.models import (
    EpochCount,
    LearningRate,
    Strength,
    TrainingConfig,
    TrainingStatus,
)
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.runtime.asking import never
from ml_trainer_env.server.validation import ActionError, json_schema, shown, validate

Stop = Callable[[], bool]

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


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """One tool: what the agent is told of it, what it takes, and what it does to an episode."""

    name: str
    description: str
    arguments: type[BaseModel]
    act: Callable[[Episode, Any, Stop], TrainingStatus]

    @property
    def input_schema(self) -> dict[str, Any]:
        return json_schema(self.arguments)


def _configure(episode: Episode, given: TrainingConfig, stop: Stop) -> TrainingStatus:
    names = [name for name in type(given).model_fields if name in given.model_fields_set]
    return episode.configure_training({name: getattr(given, name) for name in names})


def _toggle(episode: Episode, given: ToggleAugmentation, stop: Stop) -> TrainingStatus:
    strength = given.strength if "strength" in given.model_fields_set else None
    return episode.toggle_augmentation(given.enabled, strength)


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
            "run_epochs",
            "Run epochs of real training and see the metrics. Needs a configuration. More than "
            "the remaining budget trains what remains; a divergence stops training.",
            RunEpochs,
            lambda episode, given, stop: episode.run_epochs(given.num_epochs, stop),
        ),
        ToolSpec(
            "adjust_learning_rate",
            "Change the learning rate mid-training: the next epoch uses exactly new_lr, and a "
            "running schedule keeps its shape from there. Needs a configuration. After a "
            "divergence, training resumes from the best checkpoint.",
            AdjustLearningRate,
            lambda episode, given, stop: episode.adjust_learning_rate(given.new_lr),
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


def checked(name: str, arguments: Mapping[str, Any]) -> tuple[ToolSpec, BaseModel]:
    """The tool, and its arguments as it takes them. Raises `UnknownTool`, `InvalidArguments`."""
    spec = TOOLS.get(name)
    if spec is None:
        raise UnknownTool(f"no tool is named {shown(name)}; the tools are {', '.join(TOOLS)}")
    return spec, validate(spec.arguments, arguments, subject=name)


def call(
    episode: Episode | None, name: str, arguments: Mapping[str, Any], stop: Stop = never
) -> TrainingStatus:
    """Do what the agent asks. `stop` is asked at every epoch boundary and ends training early.

    Raises `ActionError` (`UnknownTool`, `InvalidArguments`) for what cannot be done; nothing has
    changed then. Any other exception is our fault; nothing has changed then either.
    """
    spec, given = checked(name, arguments)
    if episode is None:
        raise ActionError('no episode has begun: reset first, e.g. reset(task_id="easy_mnist")')
    return spec.act(episode, given, stop)
