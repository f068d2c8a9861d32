"""Evaluations over instances: one row for each agent and split, and differences pair by pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeRunner
from rich.console import Console

from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.players import Player
from ml_trainer_env.evals import evaluate, plots, report, results
from ml_trainer_env.evals.progress import Progress
from ml_trainer_env.evals.results import Result
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.task_ids import TaskId, named


def result(agent: str, task_id: TaskId, score: float, *, seed: int = 0) -> Result:
    return Result(
        player=Player(agent=agent),
        task_id=task_id,
        task_version=1,
        seed=seed,
        engine="here",
        score=score,
        episode_return=score,
        seconds=1.0,
        epochs=20,
        max_epochs=20,
        val_accuracy=0.8,
        hidden_test_accuracy=0.8,
        gap=0.0,
        measure="hidden_accuracy",
        curve=(),
    )


def operated(agent: str, index: int, measure: str, score: float) -> Result:
    """On an instance of a cluster, whose scores are of `measure`."""
    return replace(result(agent, f"cluster/eval/{index}", score), measure=measure)


def found(**scores: list[float]) -> list[Result]:
    """Of each agent on the instances 0, 1, ... of eval."""
    return [
        result(agent, f"varied_mlp/eval/{index}", score)
        for agent, of in scores.items()
        for index, score in enumerate(of)
    ]


def test_the_instances_of_a_split_are_one_row_and_those_of_another_another() -> None:
    other = [result("expert", "varied_mlp/train/3", 0.5), result("expert", "easy_mnist", 0.9)]
    rows = results.rows([*found(expert=[0.2, 0.4], constant=[0.1, 0.3]), *other])
    assert [(row.group, row.agent, row.scores) for row in rows] == [
        ("easy_mnist", "expert", [0.9]),
        ("varied_mlp/train", "expert", [0.5]),
        ("varied_mlp/eval", "constant", [0.1, 0.3]),
        ("varied_mlp/eval", "expert", [0.2, 0.4]),
    ]


def test_agents_are_compared_on_the_instances_that_both_have_played() -> None:
    lower, higher = (
        results.rows(found(constant=[0.1, 0.9, 0.5])),
        results.rows(found(expert=[0.3, 1.0, 0.5, 0.0])),
    )
    assert results.paired(lower[0], higher[0]) == pytest.approx([0.2, 0.1, 0.0])


def test_a_small_difference_on_every_instance_is_told_from_chance() -> None:
    """Which unpaired intervals, as wide as instances are varied, would not do."""
    levels = [index / 20 for index in range(18)]
    scores = found(constant=levels, expert=[level + 0.05 for level in levels])
    text = "\n".join(report.checks(results.rows(scores)))
    assert "+0.050 (+0.050 to +0.050) paired over 18, above 0: yes." in text
    by_chance = found(constant=levels, expert=levels[::-1])
    assert "above 0: **no**" in "\n".join(report.checks(results.rows(by_chance)))


def test_what_was_not_played_of_a_cluster_is_not_measured_and_the_rest_is() -> None:
    """The mean of recovery and restraint is undefined where there is only one of them."""
    acted = [
        operated("careful", index, "recovery", score) for index, score in enumerate((0.2, 0.6))
    ]
    [row] = results.rows(acted)
    recovery, restraint, both = results.watched(row)
    assert (recovery and recovery.value, restraint, both) == (pytest.approx(0.4), None, None)
    text = report.table([row])
    assert "| careful | 2 | - | - | 0.400 | 0.200 to 0.600 | - | - | 0.400 |" in text
    assert "undefined until some of each are played" in text
    assert "intervals apart" not in "\n".join(report.checks([row, row]))

    [row] = results.rows([*acted, operated("careful", 2, "restraint", 0.8)])
    both = results.watched(row).both
    assert both
    assert both.value == pytest.approx(2 * 0.4 * 0.8 / (0.4 + 0.8))
    assert "undefined" not in report.table([row])


def test_pictures_of_clusters_part_recovery_from_restraint(tmp_path: Path) -> None:
    quiet, acted = operated("nothing", 0, "restraint", 1), operated("nothing", 1, "recovery", 0)
    assert [name for name, _ in plots.draw(results.rows([quiet]), tmp_path)] == [
        "scores.png",
        "profile.png",  # of accuracies there are no curves
    ]
    panels = plots.panels(results.rows([acted, quiet, result("expert", "easy_mnist", 0.9)]))
    assert {title: [row.scores for row in of] for title, of in panels.items()} == {
        "easy: MNIST": [[0.9]],
        "cluster/eval: recovery": [[0]],
        "cluster/eval: restraint": [[1]],
    }
    assert list(plots.panels(results.rows([quiet]))) == ["cluster/eval: restraint"]


def test_a_split_is_played_recorded_and_reported(tmp_path: Path, runner: FakeRunner) -> None:
    def connect() -> LocalSession:
        return LocalSession(MLTrainerEnvironment(runner))

    tasks = named("varied_mlp/eval/0-3")
    players = evaluate.contenders(["naive", "oracle"], tasks)
    jobs = evaluate.jobs(players, 1, connect)
    progress = Progress(Console(quiet=True), len(jobs), 0)
    assert evaluate.evaluate(jobs, tmp_path, connect, parallel=2, progress=progress) == []
    assert evaluate.pending(jobs, tmp_path) == []
    assert {path.parent for path in tmp_path.rglob("*.jsonl")} == {tmp_path}
    loaded = results.load(tmp_path)
    assert loaded.refused == []
    text = report.write(loaded, tmp_path).read_text()
    assert "## varied_mlp/eval\n" in text
    assert text.count("| 4 |") == 2
