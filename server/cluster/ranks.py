"""The ranks at work: each computes the gradients of its micro-shards, and all make one update.

Guarantee: whoever plays the ranks, one process or many, what comes of it is the same to the bit.
A micro-shard's gradient does not depend on what is computed beside it, and gradients are added in
the order of the micro-shards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server.cluster.networks import ClusterNetwork, Rows, gradients
from ml_trainer_env.server.cluster.state import Checkpoint, Model
from ml_trainer_env.server.engine.optimizers import update


class Update(NamedTuple):
    """What a step of AdamW uses."""

    rate: float
    weight_decay: float
    clip: float | None  # of the norm of the mean gradient


class Part(NamedTuple):
    """What one rank is to do in a step."""

    rank: int
    host: int  # that plays it
    shards: tuple[int, ...]  # the data shards that its micro-shards read
    rows: Rows  # of these
    factor: float = 1.0  # of its gradients: another one on a host that corrupts them
    slowdown: float = 1.0


class Contribution(NamedTuple):
    """Mean losses (k,) of a rank's micro-shards, in nats, and their gradients (k, P)."""

    losses: Tensor
    gradients: Tensor


class Lost(Exception):
    """A host did not answer within the time that a collective has."""

    def __init__(self, host: int) -> None:
        super().__init__(host)
        self.host = host


class Ranks(Protocol):
    """Those who train, while they do, and their disk."""

    def begin(self, hosts: Sequence[int], model: Model, apart: Mapping[int, Tensor]) -> None:
        """These hosts train from here on, and no others. They have this model; those apart, weights
        (P,) of their own.
        """
        ...

    def contribute(self, parts: Sequence[Part]) -> list[Contribution]:
        """Of each part; the next update adds them. Raises `Lost`."""
        ...

    def update(self, made: Update) -> float:
        """On all hosts that are not apart. The norm of the mean gradient before it is clipped;
        where that is not finite, nothing is updated.
        """
        ...

    def part(self, host: int) -> None:
        """From here on `host` misses every update."""
        ...

    def lose(self, host: int) -> None:
        """`host` answers no more."""
        ...

    def flip(self, place: int, bit: int) -> None:
        """Turn a bit of a weight, on all hosts that are not apart."""
        ...

    def model(self) -> Model:
        """A copy of what the hosts have that are not apart."""
        ...

    def apart(self) -> dict[int, Tensor]:
        """The weights of the others."""
        ...

    def write(self, checkpoint: Checkpoint) -> None:
        """Its file; of one that is damaged, as far as it reaches."""
        ...

    def read(self, checkpoint: Checkpoint) -> Model:
        """What is on disk of it: of a damaged one, zeros from the middle of each vector on."""
        ...


class Memory:
    """What one host holds: its own copy of weights and moments, and what a step does to them."""

    def __init__(self, network: ClusterNetwork, model: Model) -> None:
        self._network = network
        self.model = copied(model)

    def contribution(self, part: Part) -> Contribution:
        """What a rank computes by itself."""
        matrix = self.model.weights.expand(len(part.shards), -1)
        losses, found = gradients(self._network, matrix, part.rows)
        return Contribution(losses, corrupted(found, part.factor))

    def update(self, rows: Sequence[Tensor], made: Update) -> float:
        """`rows`: the gradients (P,) of all micro-shards, in their order."""
        total = rows[0].clone()
        for row in rows[1:]:
            total += row
        total /= len(rows)
        norm = float(total.norm())
        if not math.isfinite(norm):
            return norm
        if made.clip is not None and norm > made.clip:
            total *= made.clip / norm
        plan = EpochPlan(
            optimizer="adamw",
            learning_rate=made.rate,
            batch_size=128,  # which a step of the optimizer does not look at
            weight_decay=made.weight_decay,
            dropout=0,
            augmentation=0,
        )
        model = self.model
        update(plan, [model.weights], [total], [[m] for m in model.moments], model.updates)
        self.model = replace(model, updates=model.updates + 1)
        return norm

    def flip(self, place: int, bit: int) -> None:
        """Turn a bit of a weight."""
        self.model.weights.view(torch.int32)[place].bitwise_xor_(1 << bit)


class Together:
    """All ranks in this process, in one go: their micro-shards are one batch, and those in step
    share one memory.
    """

    def __init__(self, network: ClusterNetwork) -> None:
        self._network = network

    def begin(self, hosts: Sequence[int], model: Model, apart: Mapping[int, Tensor]) -> None:
        self._hosts = set(hosts)
        self._memory = Memory(self._network, model)
        self._apart = dict(apart)
        self._rows: list[Tensor] = []

    def contribute(self, parts: Sequence[Part]) -> list[Contribution]:
        for part in parts:
            if part.host not in self._hosts:
                raise Lost(part.host)
        counts = [len(part.shards) for part in parts]
        rows = Rows(*(torch.cat(each) for each in zip(*(part.rows for part in parts), strict=True)))
        own = [self._apart.get(part.host, self._memory.model.weights) for part in parts]
        if all(weights is own[0] for weights in own):
            matrix = own[0].expand(sum(counts), -1)
        else:
            matrix = torch.cat([w.expand(n, -1) for w, n in zip(own, counts, strict=True)])
        losses, found = gradients(self._network, matrix, rows)
        each = zip(parts, losses.split(counts), found.split(counts), strict=True)
        contributions = [Contribution(a, corrupted(g, part.factor)) for part, a, g in each]
        self._rows = in_order(contributions)
        return contributions

    def update(self, made: Update) -> float:
        return self._memory.update(self._rows, made)

    def part(self, host: int) -> None:
        self._apart.setdefault(host, self._memory.model.weights.clone())

    def lose(self, host: int) -> None:
        self._hosts.discard(host)

    def flip(self, place: int, bit: int) -> None:
        self._memory.flip(place, bit)

    def model(self) -> Model:
        return copied(self._memory.model)

    def apart(self) -> dict[int, Tensor]:
        return dict(self._apart)

    def write(self, checkpoint: Checkpoint) -> None:
        """The state holds it."""

    def read(self, checkpoint: Checkpoint) -> Model:
        model = checkpoint.model
        if not checkpoint.damaged:
            return model
        weights, *moments = (_truncated(part) for part in (model.weights, *model.moments))
        return Model(weights, tuple(moments), model.updates)


def copied(model: Model) -> Model:
    """With tensors of its own."""
    moments = tuple(moment.clone() for moment in model.moments)
    return replace(model, weights=model.weights.clone(), moments=moments)


def corrupted(gradients: Tensor, factor: float) -> Tensor:
    """As they leave a host."""
    return gradients if factor == 1.0 else gradients * factor


def in_order(contributions: Sequence[Contribution]) -> list[Tensor]:
    """The gradients of all micro-shards, (P,) each."""
    return [row for each in contributions for row in each.gradients.unbind()]


def _truncated(part: Tensor) -> Tensor:
    """As a file reads that ends in the middle, where nobody checks."""
    read = part.clone()
    read[len(read) // 2 :] = 0
    return read
