"""The state of a cluster between two events: everything that its future depends on but its world.

Never written to: whoever trains on copies what it changes, so forks may share tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ml_trainer_env.events import MICRO_SHARDS, Settings
from ml_trainer_env.server.cluster.checks import Facts
from ml_trainer_env.server.models_nn import Parametrised
from ml_trainer_env.server.worlds import Sampler

KEPT = 5  # checkpoints
FLOAT = 4  # bytes
MOST_APART = 4  # ranks


def most_bytes(network: Parametrised) -> int:
    """What the tensors of a state weigh at most: the model, its checkpoints, where the last window
    began, and weights of ranks that are out of step now and were then.
    """
    weights = sum(p.size for p in network.parameters)
    return FLOAT * weights * (3 * (1 + KEPT + 1) + 2 * MOST_APART)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Weights (P,) and AdamW's moments, (P,) each, after `updates` with these moments."""

    weights: Tensor
    moments: tuple[Tensor, ...]
    updates: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What lies on disk. One that is damaged reads as zeros from its middle on."""

    step: int
    model: Model
    sampler: Sampler
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Fleet:
    """Which host plays which rank, and which rank works on which micro-shard."""

    hosts: tuple[int, ...]  # of each rank
    owners: tuple[int, ...]  # of each micro-shard
    excluded: frozenset[int] = frozenset()  # ranks
    dead: frozenset[int] = frozenset()  # hosts

    @property
    def next_host(self) -> int:
        """The number of one that was never seen: numbers only grow."""
        return max(*self.hosts, *self.dead, -1) + 1

    @property
    def working(self) -> list[int]:
        """Ranks."""
        return [rank for rank in range(len(self.hosts)) if rank not in self.excluded]

    @property
    def serving(self) -> list[int]:
        """Hosts."""
        return [self.hosts[rank] for rank in self.working]

    @property
    def alive(self) -> list[int]:
        """Of these, those that answer."""
        return [host for host in self.serving if host not in self.dead]

    def shards(self, rank: int) -> tuple[int, ...]:
        return tuple(shard for shard, owner in enumerate(self.owners) if owner == rank)


def owners(working: Sequence[int], shares: Sequence[int] | None = None) -> tuple[int, ...]:
    """Of each micro-shard, in contiguous parts. `shares` has a number for each of `working`, and
    they add up (`checks` sees to it).
    """
    if shares is None:
        least, more = divmod(MICRO_SHARDS, len(working))
        shares = [least + (n < more) for n in range(len(working))]
    return tuple(rank for rank, share in zip(working, shares, strict=True) for _ in range(share))


class Shown(NamedTuple):
    """What a step has shown: its loss and the norm of its gradient, and the rate that it used."""

    loss: float | None
    norm: float | None
    rate: float


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """The last window, so that it can be replayed."""

    model: Model  # with which it began
    apart: Mapping[int, Tensor]  # hosts that had weights of their own then
    sampler: Sampler
    settings: Settings
    shown: tuple[Shown, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ClusterState:
    """Where a cluster stands."""

    model: Model
    fleet: Fleet
    sampler: Sampler
    quarantined: frozenset[int] = frozenset()  # data shards
    step: int = 0  # where the model stands
    made: int = 0  # steps ever made
    seconds: float = 0.0
    checkpoints: tuple[Checkpoint, ...] = ()
    apart: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])
    """Hosts that have weights of their own."""
    struck: int = 0  # of the world's strikes, in the order of their time
    lost: tuple[int, ...] = ()  # hosts that served when they crashed, in their order
    wrong_rate: tuple[float, int] | None = None  # a factor, and the revision that it is of
    window: Window | None = None

    @property
    def facts(self) -> Facts:
        """What decides which events can be."""
        steps = tuple(each.step for each in self.checkpoints)
        return Facts(self.seconds, self.fleet.excluded, steps)


def merged(state: ClusterState) -> Tensor:
    """The weights of the cluster's model, (P,): from each working rank its part."""
    whole, hosts = state.model.weights, state.fleet.serving
    if not any(host in state.apart for host in hosts):
        return whole
    width = -(-len(whole) // len(hosts))
    parts = [
        state.apart.get(host, whole)[n * width : (n + 1) * width] for n, host in enumerate(hosts)
    ]
    return torch.cat(parts)
