"""Operators on whole instances of the cluster: slow, for every one is a training of 600 steps."""

from __future__ import annotations

import pytest
from real import inline

from ml_trainer_env import frozen
from ml_trainer_env.agents import catalogue
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.records import Called, Line
from ml_trainer_env.benchmarks.calibration.freeze_cluster import forked
from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.server import incidents, instances
from ml_trainer_env.server.counterfactuals import Counterfactuals, known
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.session import reset_options
from ml_trainer_env.task_ids import CLUSTER, InstanceId

pytestmark = pytest.mark.slow

ELSEWHERE = 5.0  # spreads: what other processors' bits may make of a whole run
FORKS = {str(InstanceId(CLUSTER, *of)): known(line) for of, line in frozen.forks().items()}
LARGEST = max(FORKS, key=lambda of: FORKS[of].gain)  # that no other processor's bits matter
QUIET = next(of for of, found in FORKS.items() if found.worth == "quiet")


def played(name: str, task_id: str, seed: int = 0) -> list[Called]:
    lines: list[Line] = []

    def connect() -> LocalSession:
        return LocalSession(MLTrainerEnvironment(inline()))

    with Attempt(name, connect, task_id, seed, [lines.append]) as attempt:
        catalogue.find(name)(attempt)
    return [line for line in lines if isinstance(line, Called)]


def score(calls: list[Called]) -> float:
    status = calls[-1].status
    assert isinstance(status, TrainingStatus)
    assert status.grade is not None
    return status.grade.score


@pytest.mark.parametrize("seed", [0, 3_653_403_231])
def test_a_score_is_of_the_instance_whatever_the_seed(seed: int) -> None:
    assert score(played("nothing", LARGEST, seed)) < 0.05
    assert score(played("oracle", LARGEST, seed)) > 0.9
    assert score(played("nothing", QUIET, seed)) > 0.8


@pytest.mark.parametrize("index", [17, 30])  # quarantines among the remedies
def test_a_line_of_the_table_comes_out_again(index: int) -> None:
    then = frozen.forks()["validation", index]
    again = forked(InstanceId(CLUSTER, "validation", index))
    assert again.candidate == then.candidate
    before, after = known(then), known(again)
    near = ELSEWHERE * frozen.healthy().spread
    assert after.nothing == pytest.approx(before.nothing, abs=near)
    assert after.remedies == pytest.approx(before.remedies, abs=near)


CURES = {
    "turned sign": ("configure_ranks", "use_spare"),
    "slow host": ("configure_ranks", "use_spare"),
    "dead host": ("configure_ranks", "use_spare"),
    "poisoned shards": ("configure_data", "quarantine_shards"),
    "bit flip": ("restore_checkpoint", "step"),
    "truncated checkpoint": ("restore_checkpoint", "step"),
    "wrong rate": ("configure_training", "learning_rate"),
    "bad batches": ("restore_checkpoint", "skip_batches"),
}


DRAWS = {"turned sign": 1}  # the first one comes and goes, which it does not see


@pytest.mark.parametrize("name", CURES)
def test_the_careful_one_does_what_cures_a_fault_that_is_plain(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = incidents.made(f"tests {name} {DRAWS.get(name, 0)}", "fault", (name,))
    nothing_known = Counterfactuals(500.0, ())
    task = instances.cluster_task(InstanceId(CLUSTER, "eval", 0), of, nothing_known)
    monkeypatch.setattr(reset_options, "task_of", lambda _: task)
    calls = played("careful", "cluster/eval/0")
    acts = [each for each in calls if each.tool not in ("run_epochs", "run_diagnostic")]
    assert acts[-1].tool == "submit_model"
    tool, argument = CURES[name]
    first = next(each for each in acts if each.tool == tool)
    assert argument in first.arguments
