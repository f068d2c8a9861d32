"""Loss and accuracy in eval mode, in chunks of a fixed size, whoever computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ml_trainer_env.server.engine.resident import Rows
from ml_trainer_env.server.engine.team import Team


class Score(NamedTuple):
    """Mean cross-entropy in nats, and the share of images classified correctly."""

    loss: float
    accuracy: float


def score(logits: Tensor, labels: Tensor) -> Score:
    """Of (n, classes) and (n,); sums in double precision."""
    loss = F.cross_entropy(logits, labels, reduction="none").double().mean().item()
    return Score(loss, (logits.argmax(1) == labels).double().mean().item())


def evaluate(
    logits: Callable[[Tensor], Tensor], splits: Sequence[Rows], chunk: int, team: Team
) -> list[Score]:
    """One score for each split; `logits` maps (n, C, H, W) to (n, classes), `chunk` at a time."""
    chunks = [images for split in splits for images in split.images.split(chunk)]
    results = iter(team.map(logits, chunks))
    scores: list[Score] = []
    for split in splits:
        parts = [next(results) for _ in range(-(-len(split.labels) // chunk))]
        scores.append(score(torch.cat(parts), split.labels))
    return scores
