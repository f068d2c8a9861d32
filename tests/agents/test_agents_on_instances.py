"""The agents on instances: within their few calls and epochs, and reading what there is to read."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from fakes import DIVERGED, FakeRunner, Metrics

from ml_trainer_env.agents import catalogue, pool
from ml_trainer_env.agents.attempt import Attempt
from ml_trainer_env.agents.catalogue import AGENTS, OF_CLUSTERS_ALONE, AgentUnavailable
from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.records import Called, Line, Opened
from ml_trainer_env.frozen import measured, table
from ml_trainer_env.models import INSTANCE_TOOL_CALLS, EpochPlan
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.task_ids import VARIED, Family, TaskId, instance_id, instances

PLAYERS = [name for name in AGENTS if name not in ("llm", "reference", *OF_CLUSTERS_ALONE)]
GOOD = 3e-3  # the good rate of AdamW at a multiplier of 1


def chosen(family: Family, *, taken_over: bool, split: Any = "eval") -> TaskId:
    every = [str(of) for of in instances(family, split)]
    return next(each for each in every if bool(task_of(each).inherited) == taken_over)


ON = [chosen(family, taken_over=over) for family in VARIED for over in (False, True)]


def played(name: str, task_id: TaskId, runner: FakeRunner) -> tuple[Attempt, list[Line]]:
    lines: list[Line] = []

    def connect() -> LocalSession:
        return LocalSession(MLTrainerEnvironment(runner))

    with Attempt(name, connect, task_id, 0, [lines.append]) as attempt:
        catalogue.find(name)(attempt)
    return attempt, lines


def moves(lines: list[Line]) -> list[tuple[str, dict[str, Any]]]:
    return [(line.tool, line.arguments) for line in lines if isinstance(line, Called)]


@pytest.mark.parametrize("name", PLAYERS)
@pytest.mark.parametrize("task_id", ON)
def test_it_plays_to_its_one_submission_within_its_budgets(
    name: str, task_id: TaskId, runner: FakeRunner
) -> None:
    attempt, lines = played(name, task_id, runner)
    ended, task = attempt.ended, task_of(task_id)
    assert ended is not None
    assert ended.errors == 0
    assert attempt.budget == task.budget
    assert ended.epochs <= task.budget
    by_session = [line.session for line in lines if isinstance(line, Called)]
    assert max(map(by_session.count, by_session)) <= INSTANCE_TOOL_CALLS
    assert ended.grade.task_id == task_id


def test_the_reference_knows_no_instance() -> None:
    with pytest.raises(AgentUnavailable, match="oracle"):
        catalogue.find("reference").player("varied_mlp/eval/7")
    assert catalogue.find("reference").player("easy_mnist").agent == "reference"


def test_a_record_has_the_epochs_of_a_run_that_is_taken_over(runner: FakeRunner) -> None:
    task_id = chosen("varied_mlp", taken_over=True)
    _, lines = played("nothing", task_id, runner)
    (opened,) = [line for line in lines if isinstance(line, Opened)]
    inherited = task_of(task_id).inherited
    assert inherited is not None
    assert [report.record.epoch for report in opened.epochs] == [*range(1, inherited.epochs + 1)]


@pytest.mark.parametrize("family", VARIED)
def test_oracle_and_constant_play_recipes_of_the_pool(family: Family, runner: FakeRunner) -> None:
    task_id = chosen(family, taken_over=False)
    of = instance_id(task_id)
    assert of is not None
    line = measured(of)
    assert line is not None
    for name, number in (("oracle", line.winner), ("constant", pool.best_constant(family))):
        (tool, arguments), *_ = moves(played(name, task_id, runner)[1])
        assert tool == "configure_training"
        assert arguments == pool.POOL[number].model_dump(exclude_unset=True)


@pytest.mark.parametrize("family", VARIED)
def test_the_best_constant_is_chosen_on_train_alone(family: Family) -> None:
    train = [line for (split, _), line in table(family).items() if split == "train"]
    assert train

    def mean(number: int) -> float:
        return sum(
            min(1.0, max(0.0, ((line.test[number] or 0) - line.low) / (line.high - line.low)))
            for line in train
        )

    assert pool.best_constant(family) == max(range(len(pool.POOL)), key=mean)


# The expert ---------------------------------------------------------------------------------------


class Landscape:
    """A network whose loss falls the faster, the nearer a rate is to the good one / multiplier.

    As real ones do: nothing happens two decades below, and it explodes two decades above.
    """

    def __init__(self, multiplier: float) -> None:
        self.multiplier = multiplier
        self.loss = 2.4

    def __call__(self, epoch: int, plan: EpochPlan) -> Metrics | None:
        decades = math.log10(plan.learning_rate * self.multiplier / GOOD)
        if decades > 1.7:
            return DIVERGED
        if decades > 1:
            self.loss += 1.0
        else:
            self.loss -= 0.6 * (self.loss - 0.2) * math.exp(-1.5 * decades**2)
        return self.loss, max(0.1, 1 - self.loss / 2.5), 0.02


@pytest.mark.parametrize("multiplier", [0.005, 0.02, 0.1, 0.5, 1, 3, 10, 50, 200])
def test_the_expert_finds_the_rate_whatever_the_multiplier(multiplier: float) -> None:
    task_id = chosen("varied_mlp", taken_over=False)
    _, lines = played("expert", task_id, FakeRunner(Landscape(multiplier)))
    asked = moves(lines)
    rates = [a["learning_rate"] for tool, a in asked if "learning_rate" in a]
    assert len(rates) == 2  # to begin with, and the one that was found
    assert abs(math.log10(rates[1] * multiplier / GOOD)) < 1.1
    probes = [a["new_lr"] for tool, a in asked if tool == "adjust_learning_rate"]
    assert all(later > earlier for earlier, later in pairwise([rates[0], *probes]))
    assert len(probes) <= task_of(task_id).budget / 4


def opening_of(inherited_losses: float, task_id: TaskId) -> list[tuple[str, dict[str, Any]]]:
    """What it does on a run whose loss fell by so much an epoch before it came."""
    known = task_of(task_id).inherited
    assert known is not None
    before = known.epochs

    def script(epoch: int, plan: EpochPlan) -> Metrics:
        return 2.4 - inherited_losses * min(epoch, before), 0.15, 0.02

    return moves(played("expert", task_id, FakeRunner(script))[1])


def test_it_begins_at_the_rate_of_a_run_that_learned_and_far_above_one_that_was_dead() -> None:
    task_id = chosen("varied_mlp", taken_over=True)
    inherited = task_of(task_id).inherited
    assert inherited is not None
    old = inherited.config.learning_rate
    (_, learned), *_ = opening_of(0.2, task_id)
    assert learned["learning_rate"] == old
    (_, dead), *rest = opening_of(0.0, task_id)
    assert dead["learning_rate"] > 10 * old
    for opening in (learned, dead):
        assert opening["lr_schedule"] == "constant"
    assert [tool for tool, _ in rest[:3]] == ["run_epochs", "adjust_learning_rate", "run_epochs"]


def regularised(gap: float) -> list[float]:
    """The dropouts that it sets, for a network with such a gap."""

    def script(epoch: int, plan: EpochPlan) -> Metrics:
        return 2.4 / epoch, 1 - 0.6 / (epoch + 1), gap

    _, lines = played("expert", chosen("varied_mlp", taken_over=False), FakeRunner(script))
    return [arguments["dropout"] for _, arguments in moves(lines) if "dropout" in arguments][1:]


def test_it_reacts_to_a_gap_and_to_wrong_labels() -> None:
    assert len(regularised(0.02)) == 1
    for gap in (0.12, -0.2):
        dropouts = regularised(gap)
        assert len(dropouts) > 2
        assert all(later > earlier for earlier, later in pairwise(dropouts))


def test_it_undoes_a_change_that_hurt() -> None:
    def script(epoch: int, plan: EpochPlan) -> Metrics:
        return 2.4 / epoch, 0.8 - (0.3 if plan.dropout > 0.15 else 0), 0.12

    _, lines = played("expert", chosen("varied_mlp", taken_over=False), FakeRunner(script))
    dropouts = [arguments["dropout"] for _, arguments in moves(lines) if "dropout" in arguments][1:]
    assert dropouts == [0.1, 0.2, 0.1]  # and no further change


# The searches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["optuna", "halving", "pbt"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lasting", [0, 6])
def test_a_search_survives_divergences_that_take_all_its_calls(
    name: str, seed: int, lasting: int
) -> None:
    def script(epoch: int, plan: EpochPlan) -> Metrics | None:
        return DIVERGED if epoch > lasting else (2.0, 0.3, 0.02)

    lines: list[Line] = []
    runner, task_id = FakeRunner(script), chosen("varied_mlp", taken_over=False)
    with Attempt(
        name, lambda: LocalSession(MLTrainerEnvironment(runner)), task_id, seed, [lines.append]
    ) as attempt:
        catalogue.find(name)(attempt)
    assert attempt.ended is not None
    assert attempt.ended.errors == 0


def test_the_usual_recipe_is_set_on_a_run_that_is_taken_over() -> None:
    task_id = chosen("varied_mlp", taken_over=True)
    (tool, arguments), *_ = moves(played("naive", task_id, FakeRunner())[1])
    assert (tool, arguments["learning_rate"]) == ("configure_training", 0.001)
