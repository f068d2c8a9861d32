"""The agents: what each of them does, over the wire and in process, on trainings that cost nothing.

How well they do is in the evaluation, on the real engine.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
from fakes import DIVERGED, FakeRunner, Metrics

from ml_trainer_env.agents import catalogue
from ml_trainer_env.agents.attempt import Attempt, Refused
from ml_trainer_env.agents.catalogue import AGENTS, OF_CLUSTERS_ALONE, AgentUnavailable
from ml_trainer_env.agents.expert import LAST_PART
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.moves import COOLING
from ml_trainer_env.agents.records import Called, Line, Opened
from ml_trainer_env.agents.session import Connect, RemoteSession
from ml_trainer_env.client import MLTrainerEnv
from ml_trainer_env.models import (
    EpochPlan,
    TrainingStatus,
)
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.task_ids import CLASSIC_IDS, TaskId

forks = pytest.mark.skipif(not hasattr(MLTrainerEnv, "fork"), reason="the server cannot fork yet")
PLAYERS = [name for name in AGENTS if name not in ("llm", "pbt", *OF_CLUSTERS_ALONE)]
SEARCHES = ["optuna", "halving", pytest.param("pbt", marks=forks)]


def in_process(runner: FakeRunner) -> Connect:
    return lambda: LocalSession(MLTrainerEnvironment(runner))


def played(
    name: str, connect: Connect, task_id: TaskId = "medium_fashion", seed: int = 0
) -> tuple[Attempt, list[Line]]:
    lines: list[Line] = []
    with Attempt(name, connect, task_id, seed, [lines.append]) as attempt:
        catalogue.find(name)(attempt)
    return attempt, lines


def moves(lines: list[Line]) -> list[tuple[int, str, dict[str, Any]]]:
    return [(c.session, c.tool, c.arguments) for c in lines if isinstance(c, Called)]


def statuses(lines: list[Line]) -> Iterator[TrainingStatus]:
    return (line.status for line in lines if isinstance(line, Called) and line.status)


# Every agent --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PLAYERS, pytest.param("pbt", marks=forks)])
@pytest.mark.parametrize("task_id", CLASSIC_IDS)
def test_it_plays_to_its_one_submission_within_one_budget(
    name: str, task_id: TaskId, runner: FakeRunner
) -> None:
    attempt, lines = played(name, in_process(runner), task_id)
    assert attempt.ended is not None
    assert attempt.ended.errors == 0
    assert attempt.ended.epochs == runner.advanced <= attempt.trials[0].status.max_epochs
    assert [tool for _, tool, _ in moves(lines)].count("submit_model") <= 1
    assert sum(status.done for status in statuses(lines)) == 1
    assert attempt.ended.grade == attempt.trials[attempt.ended.session].status.grade


@pytest.mark.parametrize("name", [*PLAYERS, pytest.param("pbt", marks=forks)])
def test_over_the_wire_it_plays_as_in_process(name: str, url: str, runner: FakeRunner) -> None:
    remote, remote_lines = played(name, partial(RemoteSession, url), seed=3)
    local, local_lines = played(name, in_process(runner), seed=3)
    assert moves(remote_lines) == moves(local_lines)
    assert remote.ended is not None
    assert local.ended is not None
    assert remote.ended.grade == local.ended.grade


def test_every_agent_that_is_listed_can_be_found() -> None:
    assert all(callable(catalogue.find(name)) for name in AGENTS)
    with pytest.raises(AgentUnavailable, match="expert"):
        catalogue.find("genius")


def test_an_agent_whose_library_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "ml_trainer_env.agents.search", raising=False)
    with pytest.raises(AgentUnavailable, match=r"optuna needs optuna.*evaluate"):
        catalogue.find("optuna")


def test_listing_agents_loads_no_agent() -> None:
    script = (
        "import sys, ml_trainer_env.agents.catalogue;"
        "print(*{'optuna', 'openai', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# One by one ---------------------------------------------------------------------------------------


def test_nothing_submits_at_once(runner: FakeRunner) -> None:
    _, lines = played("nothing", in_process(runner))
    assert [tool for _, tool, _ in moves(lines)] == ["submit_model"]


def test_random_differs_by_seed_and_repeats_itself(runner: FakeRunner) -> None:
    first, again, other = (
        moves(played("random", in_process(runner), seed=seed)[1]) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_naive_trains_the_whole_budget_with_one_configuration(runner: FakeRunner) -> None:
    attempt, lines = played("naive", in_process(runner))
    (_, tool, arguments), *rest = moves(lines)
    assert (tool, arguments) == (
        "configure_training",
        {"optimizer": "adam", "learning_rate": 0.001, "batch_size": 64},
    )
    assert {tool for _, tool, _ in rest} == {"run_epochs", "submit_model"}
    assert attempt.ended is not None
    assert attempt.ended.epochs == 80


def reactions(
    script: Callable[[int, EpochPlan], Metrics | None],
) -> list[tuple[str, dict[str, Any]]]:
    """What the expert does beside training, with `script` for a network."""
    _, lines = played("expert", in_process(FakeRunner(script)))
    return [(t, a) for _, t, a in moves(lines) if t not in ("run_epochs", "submit_model")]


def test_the_expert_opens_alike_on_every_task(runner: FakeRunner) -> None:
    openings = []
    for task_id in CLASSIC_IDS:
        _, lines = played("expert", in_process(runner), task_id)
        (_, _, opening), *_ = moves(lines)
        openings.append({k: v for k, v in opening.items() if k != "warmup_epochs"})
    assert openings[0] == openings[1] == openings[2]


def test_the_expert_leaves_a_training_alone_that_goes_well() -> None:
    def fine(epoch: int, plan: EpochPlan) -> Metrics:
        return 2.0 / (epoch + 1), 1 - 0.6 / (epoch + 1), 0.02

    assert len(reactions(fine)) == 1


def test_the_expert_regularises_what_overfits_step_by_step() -> None:
    def overfitting(epoch: int, plan: EpochPlan) -> Metrics:
        return 0.5 + 0.02 * epoch, 0.8, 0.15

    _, *changes = reactions(overfitting)
    stronger = [a for t, a in changes if t == "configure_training"]
    assert len(stronger) == 2
    for option in ("dropout", "augmentation_strength", "weight_decay"):
        values = [a[option] for a in stronger]
        assert values == sorted(values)
    assert stronger[0]["dropout"] > 0.2


def test_the_expert_loosens_what_cannot_learn() -> None:
    def stuck(epoch: int, plan: EpochPlan) -> Metrics:
        return 2.3, 0.1, 0.0

    _, *changes = reactions(stuck)
    assert changes[0][1]["dropout"] < 0.2
    assert changes[-1][0] == "adjust_learning_rate"


def test_the_expert_cools_after_a_divergence() -> None:
    def hot(epoch: int, plan: EpochPlan) -> Metrics | None:
        return DIVERGED if plan.learning_rate > 0.001 else (0.5 / epoch, 1 - 0.5 / epoch, 0.0)

    lowered = [a["new_lr"] for t, a in reactions(hot) if t == "adjust_learning_rate"]
    assert lowered[0] < 0.003 * COOLING + 1e-9


def test_the_expert_changes_nothing_at_the_end() -> None:
    def overfitting(epoch: int, plan: EpochPlan) -> Metrics:
        late = epoch > LAST_PART * 80
        return (0.5 + 0.02 * epoch, 0.8, 0.15) if late else (1 / epoch, epoch / 100, 0.0)

    assert all(t == "configure_training" for t, _ in reactions(overfitting)[1:])


# Searches -----------------------------------------------------------------------------------------


def good_rate(epoch: int, plan: EpochPlan) -> Metrics:
    """A network that learns the better, the nearer its first learning rates are to 0.002."""
    quality = 1 / (1 + abs(plan.learning_rate / 0.002 - 1))
    return 2 / epoch, quality * (1 - 1 / (epoch + 1)), 0.0


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_spends_one_budget_on_several_sessions_and_submits_the_best(name: str) -> None:
    runner = FakeRunner(good_rate)
    attempt, _ = played(name, in_process(runner), "easy_mnist")
    assert attempt.ended is not None
    assert attempt.ended.epochs == runner.advanced == 100
    assert len(attempt.trials) >= 4
    best = [trial.status.best_val_accuracy or 0.0 for trial in attempt.trials]
    assert attempt.ended.grade.val_accuracy == max(best)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_survives_divergences(name: str) -> None:
    def hot(epoch: int, plan: EpochPlan) -> Metrics | None:
        return DIVERGED if plan.learning_rate > 0.001 else (0.5, 0.5, 0.0)

    attempt, _ = played(name, in_process(FakeRunner(hot)), "hard_cifar")
    assert attempt.ended is not None
    assert attempt.ended.epochs == 60
    assert attempt.ended.errors == 0


def test_halving_gives_more_to_fewer() -> None:
    attempt, _ = played("halving", in_process(FakeRunner(good_rate)), "easy_mnist")
    epochs = sorted(trial.status.current_epoch for trial in attempt.trials)
    assert epochs[:4] == [3, 3, 3, 3]
    assert epochs[4:6] == [9, 9]
    assert epochs[6] == 21
    assert epochs[7] == 100 - sum(epochs[:7])


def test_optuna_prunes() -> None:
    attempt, _ = played("optuna", in_process(FakeRunner(good_rate)), "easy_mnist")
    lengths = {trial.status.current_epoch for trial in attempt.trials[:-1]}
    assert len(lengths) > 1


@forks
def test_a_population_replaces_its_worst_by_a_fork_of_its_best() -> None:
    _, lines = played("pbt", in_process(FakeRunner(good_rate)), "easy_mnist")
    opened = [line for line in lines if isinstance(line, Opened)]
    forked = [line for line in opened if line.fork_of is not None]
    assert len(opened) == 8
    assert len(forked) == 4
    assert all(line.status.current_epoch > 0 for line in forked)


# The attempt --------------------------------------------------------------------------------------


def test_sessions_share_one_budget(runner: FakeRunner) -> None:
    with Attempt("mine", in_process(runner), "hard_cifar", 0) as attempt:
        first, second = attempt.begin(), attempt.begin()
        for trial in (first, second):
            trial.call("configure_training")
        for _ in range(2):
            assert first.run(20).epochs_run == 20
        assert attempt.remaining == 20
        assert second.run(15).epochs_run == 15
        assert second.run(15).epochs_run == 5
        for trial in (first, second):
            with pytest.raises(Refused, match="all sessions share is spent"):
                trial.run(1)
        assert runner.advanced == 60
        second.call("submit_model")
        with pytest.raises(Refused, match="one submission"):
            first.call("submit_model")


@pytest.mark.parametrize(
    ("asked", "ran"), [(20, 5), (20.0, 5), (5.0, 5), (3, 3), (25, 0), (2.5, 0), ("9", 0), (True, 0)]
)
def test_what_is_left_of_the_budget_bounds_every_way_to_write_a_number(
    asked: Any, ran: int, runner: FakeRunner
) -> None:
    with Attempt("mine", in_process(runner), "hard_cifar", 0) as attempt:
        first, second = attempt.begin(), attempt.begin()
        for trial in (first, second):
            trial.call("configure_training")
        for epochs in (20, 20, 15):
            first.run(epochs)
        with nullcontext() if ran else pytest.raises(Refused, match="num_epochs: must be"):
            assert second.call("run_epochs", num_epochs=asked).epochs_run == ran
        assert runner.advanced == 55 + ran


def test_the_return_is_that_of_the_submitted_session(runner: FakeRunner) -> None:
    with Attempt("mine", in_process(runner), "hard_cifar", 0) as attempt:
        first, second = attempt.begin(), attempt.begin()
        first.call("configure_training")
        first.run(5)
        second.call("submit_model")
    assert attempt.ended is not None
    assert attempt.ended.episode_return == 0
    assert first.earned > 0


@forks
def test_a_fork_inherits_what_was_earned(runner: FakeRunner) -> None:
    connect = in_process(runner)
    with Attempt("mine", connect, "hard_cifar", 0) as attempt:
        parent = attempt.begin()
        parent.call("configure_training")
        parent.run(5)
        child = attempt.fork(parent)
        assert child.earned == parent.earned > 0
        assert child.status.current_epoch == 5
        assert attempt.remaining == 55
