"""Counterfactual runs of a cluster, for those who freeze and judge them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ml_trainer_env.events import Event, Settings, Train
from ml_trainer_env.frozen import Point
from ml_trainer_env.server.cluster.networks import NETWORKS
from ml_trainer_env.server.cluster.reading import corpus
from ml_trainer_env.server.cluster.state import ClusterState, merged
from ml_trainer_env.server.cluster.training import advance, mean_loss, start
from ml_trainer_env.server.incidents import BASE, Scheduled
from ml_trainer_env.server.worlds import World


@dataclass(frozen=True, slots=True)
class Played:
    """A run up to some point: forks go on from it."""

    state: ClusterState
    curve: tuple[Point, ...] = field(default=())  # the validation loss after each window


def begun(world: World) -> Played:
    return Played(start(world, 0))


def until(world: World, seconds: float, played: Played | None = None) -> Played:
    """Left alone up to the first end of a window at which so many are over."""
    played = played or begun(world)
    while played.state.seconds < min(seconds, world.deadline):
        played = _then(world, played, Train(settings=BASE))
    return played


def finished(
    world: World, played: Played | None = None, remedies: Sequence[Scheduled] = ()
) -> Played:
    """At the deadline, when these are applied, each at its time."""
    settings, played = BASE, played or begun(world)
    pending = sorted(remedies, key=lambda each: each.since)
    while played.state.seconds < world.deadline:
        while pending and played.state.seconds >= pending[0].since:
            for each in pending.pop(0).does:
                if isinstance(each, Settings):
                    settings = each
                elif played.state.seconds < world.deadline:
                    played = _then(world, played, each)
        if played.state.seconds < world.deadline:
            played = _then(world, played, Train(settings=settings))
    return played


def loss(world: World, played: Played) -> float:
    """On the hidden test, in nats."""
    return mean_loss(NETWORKS[world.network], merged(played.state), corpus(world.network).test)


def _then(world: World, played: Played, event: Event) -> Played:
    state, report = advance(world, 0, played.state, event)
    point = Point(seconds=round(report.seconds), val=round(1000 * report.val_loss))
    return Played(state, (*played.curve, point))
