"""What the steps of a window show: by rank, by data shard, and all together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ml_trainer_env.events import MICRO_SHARDS, RankReport
from ml_trainer_env.server.cluster.ranks import Contribution, Part
from ml_trainer_env.server.cluster.state import Fleet, Shown


class _RankStep(NamedTuple):
    seconds: float
    norm: float
    agreement: float  # the cosine of its gradient and that of the others; not a number if none are
    loss: float


@dataclass(slots=True)
class Seen:
    """Filled step by step."""

    steps: list[Shown] = field(default_factory=list[Shown])
    incidents: list[str] = field(default_factory=list[str])
    _ranks: dict[int, list[_RankStep]] = field(default_factory=dict[int, list[_RankStep]])
    _shards: dict[int, list[float]] = field(default_factory=dict[int, list[float]])

    def look(
        self, parts: Sequence[Part], contributions: Sequence[Contribution], took: Sequence[float]
    ) -> float | None:
        """Take in a step, in which each rank `took` so many seconds. Its loss, if it is finite."""
        means = [each.gradients.mean(0) for each in contributions]
        everything = torch.stack(means).sum(0)
        for part, each, mean, seconds in zip(parts, contributions, means, took, strict=True):
            cosine = F.cosine_similarity(mean, everything - mean, 0)
            agreement = float(cosine) if len(parts) > 1 else math.nan
            loss = float(each.losses.mean())
            step = _RankStep(seconds, float(mean.norm()), agreement, loss)
            self._ranks.setdefault(part.rank, []).append(step)
            for shard, loss in zip(part.shards, each.losses.tolist(), strict=True):
                self._shards.setdefault(shard, []).append(loss)
        return finite(float(torch.cat([each.losses for each in contributions]).mean()))

    def ranks(self, fleet: Fleet) -> tuple[RankReport, ...]:
        """A report on each rank of `fleet`, with means over the steps that it took part in."""
        found: list[RankReport] = []
        for rank, host in enumerate(fleet.hosts):
            report = RankReport(rank=rank, alive=host not in fleet.dead, shards=fleet.shards(rank))
            if steps := self._ranks.get(rank):
                seconds, norm, agreement, loss = map(fmean, zip(*steps, strict=True))
                means = {
                    "step_seconds": seconds,
                    "gradient_norm": finite(norm),
                    "agreement": finite(agreement),
                    "loss": finite(loss),
                }
                report = report.model_copy(update=means)
            found.append(report)
        return tuple(found)

    def shards(self) -> tuple[float | None, ...]:
        """The mean loss on each data shard."""
        return tuple(
            finite(fmean(self._shards[shard])) if shard in self._shards else None
            for shard in range(MICRO_SHARDS)
        )


def finite(number: float) -> float | None:
    """The number, where it is one."""
    return number if math.isfinite(number) else None
