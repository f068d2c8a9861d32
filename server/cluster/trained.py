"""A cluster as the runtime has it: a run, and the state that it has led to."""

from __future__ import annotations

from dataclasses import dataclass

from ml_trainer_env.events import Event, WindowReport
from ml_trainer_env.models import EpochRecord
from ml_trainer_env.server.cluster import training
from ml_trainer_env.server.cluster.networks import NETWORKS
from ml_trainer_env.server.cluster.reading import corpus
from ml_trainer_env.server.cluster.state import ClusterState, merged
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.worlds import World


@dataclass(frozen=True, slots=True, eq=False)
class ClusterTraining:
    """Equal keys mean equal bits."""

    run: Run
    state: ClusterState

    @property
    def key(self) -> str:
        return self.run.key


def start(run: Run) -> ClusterTraining:
    """Before the first event."""
    return ClusterTraining(run, training.start(_world(run), run.seed))


def advance(before: ClusterTraining, event: Event) -> ClusterTraining:
    """One event, and what is seen of it."""
    run = before.run
    state, report = training.advance(_world(run), run.seed, before.state, event)
    seen = report.model_dump()
    losses = {name: seen.pop(name) for name in ("train_loss", "val_loss")}
    record = EpochRecord(
        epoch=run.epoch + 1,
        plan=event,
        train_accuracy=None,
        val_accuracy=None,
        clean_train_loss=None,
        clean_train_accuracy=None,
        window=WindowReport(**seen),
        **losses,
    )
    return ClusterTraining(run.after(record), state)


def hidden_loss(of: ClusterTraining) -> float:
    """Of the cluster's model as it stands, on the hidden test, in nats."""
    network = _world(of.run).network
    return training.mean_loss(NETWORKS[network], merged(of.state), corpus(network).test)


def _world(run: Run) -> World:
    world = run.workload.world
    assert world is not None, "a run of a cluster has a world"
    return world
