"""Everything that trains, as the runtime asks for it: networks of one process, and clusters."""

from __future__ import annotations

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import runs, trainer
from ml_trainer_env.server.cluster import trained
from ml_trainer_env.server.cluster.trained import ClusterTraining
from ml_trainer_env.server.engine.team import SERIAL, Team
from ml_trainer_env.server.runs import Plan, Precision, Workload
from ml_trainer_env.server.trainer import TrainingState

State = TrainingState | ClusterTraining


def start(workload: Workload, seed: int, precision: Precision = "fp32") -> State:
    """An untrained network. Cheap: needs no data."""
    run = runs.begin(workload, seed, trainer.engine(precision))
    return trained.start(run) if workload.world else trainer.untrained(run)


def advance(state: State, plan: Plan, team: Team = SERIAL) -> State:
    """One epoch, or one event of a cluster. Raises TypeError for a plan of the other kind."""
    if isinstance(state, TrainingState) and isinstance(plan, EpochPlan):
        return trainer.advance(state, plan, team)
    if isinstance(state, ClusterTraining) and not isinstance(plan, EpochPlan):
        return trained.advance(state, plan)
    raise TypeError(f"{type(state).__name__} has no {type(plan).__name__}")


def hidden_test(state: State, team: Team = SERIAL) -> float:
    """For grading alone: the accuracy of the best checkpoint, or a cluster's loss in nats."""
    if isinstance(state, ClusterTraining):
        return trained.hidden_loss(state)
    return trainer.test_accuracy(state, team)
