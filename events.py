"""What happens to a cluster by its operator's will, one thing at a time, and what is seen of it.

An event is to a cluster what an epoch's plan is to a training: with the state before it, all that
its result depends on.
"""

# pyright: strict

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ml_trainer_env.values import LearningRate, Model, WeightDecay

MICRO_SHARDS = 16
WINDOW = 25  # steps
REPLAYED = 8  # steps of the last window, by `replay`

Rank = Annotated[int, Field(ge=0, lt=MICRO_SHARDS)]  # each works on one at least
Share = Annotated[int, Field(ge=1, le=MICRO_SHARDS)]  # micro-shards of a rank
Shard = Annotated[int, Field(ge=0, lt=MICRO_SHARDS)]
Diagnosis = Literal[
    "replay", "weight_checksum", "shard_loss", "flight_recorder", "verify_checkpoint"
]


class Settings(Model):
    """Of the optimizer, AdamW, and of the loop."""

    learning_rate: LearningRate = 0.003
    revision: Annotated[int, Field(ge=0, description="how often somebody has set the rate")] = 0
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    warmup: Annotated[float, Field(ge=0, le=0.5, description="share of the time")] = 0.05
    weight_decay: WeightDecay = 0.05
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    augmentation: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="strength: images are shifted by up to 4 pixels times it, rounded; "
            "of text a tenth times it of what is read is replaced at random",
        ),
    ] = 0
    checkpoint_every: Annotated[int, Field(ge=5, le=500, description="steps")] = 50


class Train(Model):
    """One window, or what the deadline or a failure leaves of it."""

    kind: Literal["train"] = "train"
    settings: Settings = Settings()


class Restore(Model):
    """Go back to a checkpoint, on all ranks; the clock goes on."""

    kind: Literal["restore"] = "restore"
    step: Annotated[int, Field(ge=0, description="the latest checkpoint up to here is taken")]
    skip_batches: Annotated[
        int, Field(ge=0, le=10_000, description="batches after it, not to be read")
    ] = 0
    load_optimizer: bool = True


class ConfigureRanks(Model):
    """Who works, and on how much. The process group starts again, and weights are broadcast.

    Shares hold until the next of these.
    """

    kind: Literal["ranks"] = "ranks"
    exclude: tuple[Rank, ...] = ()  # all that are to be out, those before included
    use_spare: tuple[Rank, ...] = ()  # whose host is replaced
    shares: tuple[int, ...] | None = None  # micro-shards of each rank; None: as equal as can be


class ConfigureData(Model):
    """What is read, and in which order. The input pipeline starts again.

    A micro-shard whose data shard is out reads the next one that is not: no step gets shorter.
    """

    kind: Literal["data"] = "data"
    quarantine: tuple[Shard, ...] = ()  # all that are to be out, those before included
    reshuffle: bool = False


class Diagnose(Model):
    """Look closer; it costs seconds, and the training stands where it stood."""

    kind: Literal["diagnose"] = "diagnose"
    what: Diagnosis


Event = Annotated[
    Train | Restore | ConfigureRanks | ConfigureData | Diagnose, Field(discriminator="kind")
]


class RankReport(Model):
    """Means over the steps of a window; None for a rank that took no part."""

    rank: int
    alive: bool
    shards: tuple[int, ...]
    step_seconds: float | None = None
    gradient_norm: float | None = None
    agreement: float | None = Field(
        default=None,
        description="cosine of its gradient and that of the others together, if there are any",
    )
    loss: float | None = None


class WindowReport(Model):
    """What is seen of a cluster after an event. Losses are in nats, seconds virtual."""

    step: int = Field(description="where the model stands")
    made: int = Field(description="steps ever made, those included that were lost")
    seconds: float = Field(description="on the clock, after it")
    learning_rate: float | None = Field(default=None, description="of the last step")
    skipped: int = Field(default=0, description="updates that were not finite")
    losses: tuple[float | None, ...] = ()  # step by step
    gradient_norms: tuple[float | None, ...] = ()
    ranks: tuple[RankReport, ...] = ()
    excluded: tuple[int, ...] = Field(default=(), description="ranks that are out")
    quarantined: tuple[int, ...] = Field(default=(), description="data shards that are out")
    shard_losses: tuple[float | None, ...] = ()  # of each data shard, means
    checkpoints: tuple[int, ...] = ()  # steps of those that are kept
    incidents: tuple[str, ...] = ()
    finding: tuple[str, ...] = Field(default=(), description="of a diagnosis, line by line")
