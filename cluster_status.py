"""What an operator sees of a cluster after every call, in full and in few words."""

# pyright: strict

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from ml_trainer_env.events import RankReport
from ml_trainer_env.values import LearningRate, Model, WeightDecay

WINDOWS_SHOWN = 10
WINDOWS_TOLD = 6  # in words
RUN_AWAY = 10_000  # numbers from here on are not told


class ClusterConfig(Model):
    """What an operator may set of the training of a cluster: AdamW, and its loop. Strict."""

    model_config = ConfigDict(strict=True)

    learning_rate: Annotated[LearningRate, Field(description="the peak of the schedule")] = 0.01
    lr_schedule: Annotated[
        Literal["constant", "cosine"],
        Field(
            description="over the clock: constant, or by a cosine to a twentieth at the deadline"
        ),
    ] = "cosine"
    warmup: Annotated[
        float, Field(ge=0, le=0.5, description="share of the time in which the rate rises")
    ] = 0.3
    weight_decay: Annotated[WeightDecay, Field(description="decoupled")] = 0.05
    gradient_clip: Annotated[
        float,
        Field(
            ge=0,
            le=1000,
            allow_inf_nan=False,
            description="largest norm of the gradient; 0: not clipped",
        ),
    ] = 1.0
    checkpoint_every: Annotated[int, Field(ge=5, le=500, description="steps")] = 50


class Window(Model):
    """25 steps, or what a failure or the deadline left of them. Numbers have four digits."""

    number: int = Field(description="from 1")
    step: int = Field(description="where the model stands after it")
    seconds: float = Field(description="on the clock, after it")
    loss: float | None = Field(description="mean over its steps, nats")
    highest_loss: float | None
    val_loss: float
    gradient_norm: float | None = Field(description="mean")
    highest_gradient_norm: float | None
    learning_rate: float | None = Field(description="of its last step")
    skipped: int = Field(description="updates that were not finite")
    steps_per_second: float | None
    ranks: tuple[RankReport, ...] = Field(description="means over its steps")
    shard_losses: tuple[float | None, ...] = Field(description="of each data shard, means")


class ClusterStatus(Model):
    """Where a cluster stands. Seconds are virtual, all else is computed."""

    step: int = Field(description="where the model stands")
    steps_made: int = Field(description="those included that were lost")
    seconds: float = Field(description="on the clock")
    deadline: float = Field(description="seconds; what is submitted stands as it does then")
    goodput: float | None = Field(
        description="part of the clock that has become progress: steps that stand, at the pace of "
        "a healthy cluster, over seconds"
    )
    config: ClusterConfig
    augmentation: float = Field(description="strength, 0: off")
    learning_rate_in_force: float
    excluded: tuple[int, ...] = Field(description="ranks")
    quarantined: tuple[int, ...] = Field(description="data shards")
    checkpoints: tuple[int, ...] = Field(description="steps of those that are kept")
    windows: tuple[Window, ...] = Field(description="the last ten")
    losses: tuple[float | None, ...] = Field(description="of the last window, step by step")
    gradient_norms: tuple[float | None, ...] = Field(description="the same")
    incidents: tuple[str, ...] = Field(description="since the call before")
    finding: tuple[str, ...] = Field(description="of the diagnosis that was asked for")

    def __str__(self) -> str:
        """A few lines, for a reader who pays for each word."""
        lines = [
            f"step {self.step} (made {self.steps_made}), {min(self.seconds, self.deadline):.0f} of "
            f"{self.deadline:.0f} s, goodput {_value(self.goodput)}; "
            f"rate {_value(self.learning_rate_in_force)}",
        ]
        if self.windows and not self.finding:  # who has asked for a closer look has seen them
            lines.append("window | step | loss, highest | val | gradient norm, highest | skipped")
            lines += map(_window, self.windows[-WINDOWS_TOLD:])
            last = self.windows[-1]
            lines.append("rank | s a step | norm | agreement | loss | shards")
            lines += map(_rank, last.ranks)
            lines.append(f"loss by data shard: {_values(last.shard_losses)}")
        out = [f"excluded ranks {_list(self.excluded)}"] if self.excluded else []
        out += [f"quarantined shards {_list(self.quarantined)}"] if self.quarantined else []
        lines.append("; ".join([f"checkpoints {_list(self.checkpoints)}", *out]))
        if self.incidents:
            lines.append(f"incidents: {'; '.join(self.incidents)}")
        lines += self.finding
        return "\n".join(lines)


def _window(of: Window) -> str:
    return (
        f"{of.number} | {of.step} | {_value(of.loss)}, {_value(of.highest_loss)} | "
        f"{_value(of.val_loss)} | {_value(of.gradient_norm)}, {_value(of.highest_gradient_norm)} | "
        f"{of.skipped}"
    )


def _rank(of: RankReport) -> str:
    if not of.alive:
        return f"{of.rank} | does not answer"
    if of.step_seconds is None:
        return f"{of.rank} | took no part"
    return (
        f"{of.rank} | {_value(of.step_seconds)} | {_value(of.gradient_norm)} | "
        f"{_value(of.agreement)} | {_value(of.loss)} | {len(of.shards)}"
    )


def _values(numbers: Iterable[float | None]) -> str:
    return " ".join(map(_value, numbers))


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _value(number: float | None) -> str:
    """Three digits; of what has run away, only that it did."""
    if number is None:
        return "-"
    return f"{number:.3g}" if abs(number) < RUN_AWAY else f"{'-' * (number < 0)}>{RUN_AWAY}"
