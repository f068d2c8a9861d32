"""Counterfactual runs of a cluster, for those who freeze and judge them."""

from __future__ import annotations

from collections.abc import Sequence

from ml_trainer_env.events import Settings, Train
from ml_trainer_env.server.cluster.networks import NETWORKS
from ml_trainer_env.server.cluster.reading import corpus
from ml_trainer_env.server.cluster.state import ClusterState, merged
from ml_trainer_env.server.cluster.training import advance, mean_loss, start
from ml_trainer_env.server.incidents import BASE, Scheduled
from ml_trainer_env.server.worlds import World


def until(world: World, seconds: float, state: ClusterState | None = None) -> ClusterState:
    """Left alone up to the first end of a window at which so many are over."""
    state = state or start(world, 0)
    while state.seconds < min(seconds, world.deadline):
        state, _ = advance(world, 0, state, Train(settings=BASE))
    return state


def finished(
    world: World, state: ClusterState | None = None, remedies: Sequence[Scheduled] = ()
) -> float:
    """The hidden-test loss at the deadline, when these are applied, each at its time."""
    settings, state = BASE, state or start(world, 0)
    pending = sorted(remedies, key=lambda each: each.since)
    while state.seconds < world.deadline:
        while pending and state.seconds >= pending[0].since:
            for each in pending.pop(0).does:
                if isinstance(each, Settings):
                    settings = each
                elif state.seconds < world.deadline:
                    state, _ = advance(world, 0, state, each)
        state, _ = advance(world, 0, state, Train(settings=settings))
    return mean_loss(NETWORKS[world.network], merged(state), corpus(world.network).test)
