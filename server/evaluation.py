"""Loss and accuracy in eval mode, in chunks of a fixed size whose sums are added in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ml_trainer_env.server.resident import Rows
from ml_trainer_env.server.team import Team

CHUNK = 100  # images: small enough for the activations to stay in the cache


class Score(NamedTuple):
    """Mean cross-entropy in nats, and the share of images classified correctly."""

    loss: float
    accuracy: float


def evaluate(logits: Callable[[Tensor], Tensor], splits: Sequence[Rows], team: Team) -> list[Score]:
    """One score for each split; `logits` maps (n, C, H, W) to (n, classes)."""
    chunks = [(split, first) for split in splits for first in range(0, len(split.labels), CHUNK)]

    def score(chunk: tuple[Rows, int]) -> tuple[Tensor, Tensor]:
        split, first = chunk
        labels = split.labels[first : first + CHUNK]
        out = logits(split.images[first : first + CHUNK])
        return F.cross_entropy(out, labels, reduction="sum"), (out.argmax(1) == labels).sum()

    sums = iter(team.map(score, chunks))
    scores: list[Score] = []
    for split in splits:
        n = len(split.labels)
        parts = [next(sums) for _ in range(0, n, CHUNK)]
        loss = torch.stack([p[0] for p in parts]).double().sum().item()
        correct = torch.stack([p[1] for p in parts]).sum().item()
        scores.append(Score(loss / n, correct / n))
    return scores
