"""A cluster goes on: `advance(world, seed, state, event)`, a pure function of values.

The same world, seed, state and event give the same bits, whoever plays the ranks. What faults do is
in the arithmetic: gradients are really corrupted, weights really differ between ranks, batches are
really mislabelled. Only seconds are virtual; the clock never goes back.

The model of the cluster is put together from its ranks, a contiguous part from each, as sharded
checkpoints are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from ml_trainer_env.events import (
    MICRO_SHARDS,
    WINDOW,
    ConfigureData,
    ConfigureRanks,
    Diagnose,
    Event,
    Restore,
    Settings,
    Train,
    WindowReport,
)
from ml_trainer_env.server.cluster import clock, diagnoses
from ml_trainer_env.server.cluster.checks import check
from ml_trainer_env.server.cluster.networks import NETWORKS, ClusterNetwork, Rows, losses
from ml_trainer_env.server.cluster.ranks import Lost, Ranks, Together
from ml_trainer_env.server.cluster.reading import corpus
from ml_trainer_env.server.cluster.replay import replay
from ml_trainer_env.server.cluster.seen import Seen
from ml_trainer_env.server.cluster.state import (
    Checkpoint,
    ClusterState,
    Fleet,
    Model,
    Window,
    merged,
    owners,
)
from ml_trainer_env.server.cluster.steps import Cluster
from ml_trainer_env.server.cluster.strikes import strike_due
from ml_trainer_env.server.engine import modes
from ml_trainer_env.server.models_nn import initial_weights
from ml_trainer_env.server.worlds import Sampler, World

NOTHING_LEARNED = 20.0  # nats: a loss above it, or none, is told as this


class Report(WindowReport):
    """What came of an event, for the record of it."""

    train_loss: float | None
    val_loss: float


def start(world: World, seed: int) -> ClusterState:
    """Before the first step, with a checkpoint of it."""
    network = NETWORKS[world.network]
    generator = torch.Generator().manual_seed(world.draw(seed).bits("weights") >> 32)
    with modes.of_the_engine(), modes.of_a_computation("fp32"):
        weights = initial_weights(network, generator)
    model = Model(weights, (torch.zeros_like(weights), torch.zeros_like(weights)))
    ranks = range(world.ranks)
    fleet = Fleet(tuple(ranks), owners(ranks))
    first = Checkpoint(0, model, Sampler())
    return ClusterState(model, fleet, first.sampler, checkpoints=(first,))


def advance(
    world: World, seed: int, state: ClusterState, event: Event, ranks: Ranks | None = None
) -> tuple[ClusterState, Report]:
    """What `event` makes of `state`, and what is seen of it. Raises ValueError, with the line of
    `check`, for one that cannot be.
    """
    if why := check(world, state.facts, event):
        raise ValueError(why)
    with modes.of_the_engine(), modes.of_a_computation("fp32"):
        cluster = Cluster(world, seed, state, ranks or Together(NETWORKS[world.network]))
        match event:
            case Train():
                report = _train(cluster, event)
            case Restore():
                report = _restore(cluster, event)
            case ConfigureRanks():
                report = _configure_ranks(cluster, event)
            case ConfigureData():
                report = _configure_data(cluster, event)
            case Diagnose():
                report = _diagnose(cluster, event)
        return cluster.state, report


def mean_loss(network: ClusterNetwork, weights: Tensor, rows: Rows) -> float:
    """Over rows of a split, in nats, in parts of a fixed size."""
    with modes.of_the_engine(), modes.of_a_computation("fp32"):
        found = [
            losses(
                network, weights.expand(len(inputs), -1), Rows(inputs[:, None], targets[:, None])
            )
            for inputs, targets in zip(*(each.split(MICRO_SHARDS) for each in rows), strict=True)
        ]
        mean = torch.cat(found).double().mean().item()
    return min(mean, NOTHING_LEARNED) if math.isfinite(mean) else NOTHING_LEARNED


# Events -------------------------------------------------------------------------------------------


def _train(cluster: Cluster, event: Train) -> Report:
    """A window: it ends early at the deadline, and when a step fails. One without a step leaves the
    last one to be replayed.
    """
    seen, before = Seen(), cluster.state
    cluster.ranks.begin(before.fleet.alive, before.model, before.apart)
    for _ in range(WINDOW):
        going_on = _step(cluster, event.settings, seen)
        if not going_on or cluster.state.seconds >= cluster.world.deadline:
            break
    cluster.set(model=cluster.ranks.model(), apart=cluster.ranks.apart())
    if seen.steps:
        shown = tuple(seen.steps)
        window = Window(before.model, before.apart, before.sampler, event.settings, shown)
        cluster.set(window=window)
    return _report(cluster, seen)


def _step(cluster: Cluster, settings: Settings, seen: Seen) -> bool:
    """One step. False if it ends the window; it takes time all the same."""
    try:
        cluster.compute(settings, cluster.rate(settings), seen)
    except Lost as lost:
        cluster.wait(clock.TIMEOUT)
        rank = cluster.rank(lost.host)
        seen.incidents.append(f"a collective timed out, waiting for rank {rank}")
        return False
    if cluster.state.step % settings.checkpoint_every == 0:
        cluster.save()
    return strike_due(cluster, settings, seen)


def _restore(cluster: Cluster, event: Restore) -> Report:
    """Later checkpoints are given up: a crash leads back to this one, not to them."""
    found = tuple(each for each in cluster.state.checkpoints if each.step <= event.step)
    checkpoint = found[-1]
    cluster.load(checkpoint, event.load_optimizer)
    sampler = cluster.state.sampler.skipping(event.skip_batches)
    cluster.set(sampler=sampler, checkpoints=found)
    cluster.wait(clock.RESTART)
    return _report(cluster, incidents=[f"restored the checkpoint of step {checkpoint.step}"])


def _configure_ranks(cluster: Cluster, event: ConfigureRanks) -> Report:
    """Weights are broadcast by the first rank that works.

    A window that began with ranks out of step cannot be replayed by others: what a micro-shard gave
    then hung on whose it was.
    """
    state, fleet = cluster.state, cluster.state.fleet
    for rank in event.use_spare:
        hosts = list(fleet.hosts)
        hosts[rank] = fleet.next_host
        fleet = replace(fleet, hosts=tuple(hosts))
    fleet = replace(fleet, excluded=frozenset(event.exclude))
    owned = owners(fleet.working, event.shares)
    weights = state.apart.get(fleet.serving[0], state.model.weights)
    cluster.set(
        fleet=replace(fleet, owners=owned),
        model=replace(state.model, weights=weights),
        apart={},
        window=None if state.window and state.window.apart else state.window,
    )
    cluster.wait(clock.RESTART + clock.SPARE * bool(event.use_spare))
    return _report(cluster)


def _configure_data(cluster: Cluster, event: ConfigureData) -> Report:
    """After another quarantine the last window cannot be replayed: it was of other batches."""
    state, quarantined = cluster.state, frozenset(event.quarantine)
    if quarantined != state.quarantined:
        cluster.set(window=None)
    sampler = state.sampler.reshuffled() if event.reshuffle else state.sampler
    cluster.set(quarantined=quarantined, sampler=sampler)
    cluster.wait(clock.RELOAD)
    return _report(cluster)


def _diagnose(cluster: Cluster, event: Diagnose) -> Report:
    match event.what:
        case "replay":
            finding = replay(cluster)
        case "weight_checksum":
            finding = diagnoses.weight_checksum(cluster.state)
        case "shard_loss":
            finding = diagnoses.shard_loss(cluster.world, cluster.draw.place, cluster.state)
        case "flight_recorder":
            finding = diagnoses.flight_recorder(cluster.state)
        case "verify_checkpoint":
            finding = diagnoses.verify_checkpoint(cluster.state)
    cluster.wait(clock.DIAGNOSES[event.what])
    return _report(cluster, finding=finding)


def _report(
    cluster: Cluster,
    seen: Seen | None = None,
    incidents: Sequence[str] = (),
    finding: Sequence[str] = (),
) -> Report:
    seen, state, network = seen or Seen(), cluster.state, cluster.world.network
    losses = [step.loss for step in seen.steps if step.loss is not None]
    return Report(
        train_loss=fmean(losses) if losses else None,
        val_loss=mean_loss(NETWORKS[network], merged(state), corpus(network).val),
        step=state.step,
        made=state.made,
        seconds=state.seconds,
        learning_rate=seen.steps[-1].rate if seen.steps else None,
        skipped=sum(step.norm is None for step in seen.steps),
        losses=tuple(step.loss for step in seen.steps),
        gradient_norms=tuple(step.norm for step in seen.steps),
        ranks=seen.ranks(state.fleet),
        excluded=tuple(sorted(state.fleet.excluded)),
        quarantined=tuple(sorted(state.quarantined)),
        shard_losses=seen.shards(),
        checkpoints=tuple(each.step for each in state.checkpoints),
        incidents=(*seen.incidents, *incidents),
        finding=tuple(finding),
    )
