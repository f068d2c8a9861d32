"""What a cluster trains, and what will happen to it: plain values, part of every key."""

# pyright: strict

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ml_trainer_env.server.cluster.faults import Fault
from ml_trainer_env.server.draws import Draw

NetworkName = Literal["cluster_lm", "cluster_cnn"]


@dataclass(frozen=True, slots=True)
class World:
    """Everything random about a run is drawn from `name` and its seed."""

    name: str
    network: NetworkName
    ranks: int
    deadline: float  # seconds
    faults: tuple[Fault, ...] = ()

    def draw(self, seed: int) -> Draw:
        return Draw(f"{self.name}|{seed}")
