"""What a closer look finds, line by line. Each tells faults apart that look alike from afar."""

from __future__ import annotations

import hashlib

import torch

from ml_trainer_env.events import MICRO_SHARDS
from ml_trainer_env.server.cluster.networks import NETWORKS, Rows, losses
from ml_trainer_env.server.cluster.reading import read
from ml_trainer_env.server.cluster.state import ClusterState, merged
from ml_trainer_env.server.worlds import Reading, World

BATCHES = 4  # of each data shard, to measure its loss


def weight_checksum(state: ClusterState) -> list[str]:
    """Of each rank: those in step have the same."""
    fleet = state.fleet
    lines: list[str] = []
    for rank in fleet.working:
        weights = state.apart.get(fleet.hosts[rank], state.model.weights)
        digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:12]
        lines.append(f"rank {rank}: {digest}")
    return lines


def shard_loss(world: World, place: str, state: ClusterState) -> list[str]:
    """Of the cluster's model on what each data shard would give next, quarantined or not."""
    weights, lines = merged(state), list[str]()
    for shard in range(MICRO_SHARDS):
        wanted = [Reading(shard, state.sampler.skipping(n)) for n in range(BATCHES)]
        found = [read(world, place, [each]) for each in wanted]
        rows = Rows(*(torch.cat(each, 1) for each in zip(*found, strict=True)))
        loss = losses(NETWORKS[world.network], weights.expand(1, -1), rows)
        lines.append(f"data shard {shard}: loss {float(loss):.3f}")
    return lines


def flight_recorder(state: ClusterState) -> list[str]:
    """Of every rank: whether it answers, and how often its host was lost."""
    fleet = state.fleet
    return [
        f"rank {rank}: {'does not answer' if host in fleet.dead else 'answers'}, "
        f"lost {state.lost.count(host)} time{'' if state.lost.count(host) == 1 else 's'}"
        for rank, host in enumerate(fleet.hosts)
    ]


def verify_checkpoint(state: ClusterState) -> list[str]:
    """Of every checkpoint: whether its file is as long as it should be."""
    return [
        f"step {each.step}: {'damaged' if each.damaged else 'whole'}" for each in state.checkpoints
    ]
