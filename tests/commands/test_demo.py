"""The scripted agent's decisions, and the demo that shows them on a real server."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import DIVERGED, FakeRunner, Metrics, begin, learning
from live import eventually, listens

from ml_trainer_env import demo
from ml_trainer_env.agents.moves import COOLING, Move
from ml_trainer_env.agents.scripted import RECIPES, scripted
from ml_trainer_env.local_server import ServerError
from ml_trainer_env.models import (
    MAX_TOOL_CALLS,
    EpochPlan,
    TrainingStatus,
)
from ml_trainer_env.server.episode import tools
from ml_trainer_env.server.episode.episode import Episode
from ml_trainer_env.server.episode.tools import begun
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.task_ids import CLASSIC_IDS, TaskId
from ml_trainer_env.terminal import WIDTH

CLI = [sys.executable, "-m", "ml_trainer_env.cli"]
ANSI = "\x1b"

# The scripted agent -------------------------------------------------------------------------------


def played(task_id: TaskId, runner: FakeRunner) -> tuple[list[Move], list[TrainingStatus], Episode]:
    """A whole episode by the scripted agent: its moves and what each was answered."""
    task = TASKS[task_id]
    episode = begun(task, begin(task, 0), runner)
    status = episode.opening()
    moves: list[Move] = []
    answers: list[TrainingStatus] = []
    while not status.done:
        moves.append(scripted(status))
        status = tools.call(episode, *moves[-1])
        answers.append(status)
        assert len(moves) <= MAX_TOOL_CALLS
    return moves, answers, episode


def test_there_is_a_recipe_for_every_task() -> None:
    assert tuple(RECIPES) == CLASSIC_IDS


@pytest.mark.parametrize("task_id", CLASSIC_IDS)
def test_it_configures_its_recipe_trains_the_whole_budget_and_submits(
    task_id: TaskId, runner: FakeRunner
) -> None:
    moves, answers, _ = played(task_id, runner)
    tools_used = [move.tool for move in moves]
    assert tools_used[0] == "configure_training"
    assert set(tools_used[1:-1]) == {"run_epochs"}
    assert tools_used[-1] == "submit_model"
    assert answers[-1].remaining_budget == 0
    assert answers[-1].grade is not None
    assert answers[-1].grade.submitted_by == "agent"
    config = answers[-1].current_config
    assert config is not None
    assert config.model_dump(exclude={"learning_rate_in_force"}) == RECIPES[task_id].model_dump()


@pytest.mark.parametrize("task_id", CLASSIC_IDS)
def test_it_trains_in_pieces_that_one_can_watch(task_id: TaskId, runner: FakeRunner) -> None:
    moves, answers, _ = played(task_id, runner)
    assert len(moves) <= MAX_TOOL_CALLS
    assert all(answer.epochs_run <= 10 for answer in answers)


def too_hot(limit: float) -> Callable[[int, EpochPlan], Metrics | None]:
    def script(epoch: int, plan: EpochPlan) -> Metrics | None:
        return DIVERGED if plan.learning_rate > limit else learning(epoch, plan)

    return script


def test_it_lowers_the_rate_after_a_divergence_and_trains_on() -> None:
    limit = RECIPES["easy_mnist"].learning_rate / 2
    moves, answers, episode = played("easy_mnist", FakeRunner(too_hot(limit)))
    history = episode.now.training.history
    [first, *_] = diverged = [i for i, answer in enumerate(answers) if answer.is_diverged]
    assert len(diverged) == 1
    assert moves[first + 1].tool == "adjust_learning_rate"
    config = answers[first].current_config
    assert config is not None
    lowered = moves[first + 1].arguments["new_lr"]
    assert lowered == pytest.approx(config.learning_rate_in_force * COOLING)
    after = next(record for record in history if record.epoch == answers[first].current_epoch + 1)
    assert after.learning_rate == lowered
    assert len(history) == TASKS["easy_mnist"].max_epochs


def test_a_network_that_always_diverges_ends_the_episode_too() -> None:
    moves, answers, _ = played("hard_cifar", FakeRunner(too_hot(0.0)))
    assert answers[-1].done
    assert len(moves) == MAX_TOOL_CALLS


def test_it_needs_no_memory(runner: FakeRunner) -> None:
    """Taken up anywhere, an episode is played on as it would have been."""
    _, answers, _ = played("medium_fashion", runner)
    assert [scripted(answer) for answer in answers[:-1]] == [
        scripted(TrainingStatus.model_validate_json(answer.model_dump_json()))
        for answer in answers[:-1]
    ]
    with pytest.raises(ValueError, match="over"):
        scripted(answers[-1])


@pytest.mark.parametrize(
    ("module", "unseen"),
    [
        ("agents.scripted", ("torch", "numpy", "openenv", "ml_trainer_env.server")),
        ("demo", ("torch", "ml_trainer_env.server")),
    ],
)
def test_importing_needs_no_more_than_a_client_has(module: str, unseen: tuple[str, ...]) -> None:
    script = (
        f"import sys, ml_trainer_env.{module}; print([m for m in {unseen} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# The demo, on a server whose trainings cost nothing -----------------------------------------------


def test_all_tasks_are_played_over_the_wire(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.demo(CLASSIC_IDS, 0, url) == 0
    out = capsys.readouterr().out
    for task_id in CLASSIC_IDS:
        assert f"Grade of {task_id}" in out
    assert out.count("submit_model: submitted; final score") == len(CLASSIC_IDS)
    assert out.count("Hidden-test accuracy 81.2%") == len(CLASSIC_IDS)
    assert len(re.findall(r"^Score \d\.\d+ = ", out, re.MULTILINE)) == len(CLASSIC_IDS)
    for component in ("accuracy", "generalization", "efficiency", "stability"):
        assert component in out
    row = r"^\[[#.]+\] +(\d+)/(\d+) .* (?:improving|plateaued|warming_up) "
    rows = re.findall(row, out, re.MULTILINE)
    assert [int(total) for done, total in rows if done == total] == [100, 80, 60]
    assert "Summary" in out


def test_a_log_of_it_is_readable(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.demo(["hard_cifar"], 7, url) == 0
    out = capsys.readouterr().out
    assert "hard_cifar, seed 7" in out
    assert "easy_mnist" not in out
    assert ANSI not in out
    assert max(map(len, out.splitlines())) <= WIDTH
    assert "\r" not in out


def test_a_divergence_is_shown(
    url: str, runner: FakeRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    runner.script = too_hot(RECIPES["easy_mnist"].learning_rate / 2)
    assert demo.demo(["easy_mnist"], 0, url) == 0
    out = capsys.readouterr().out
    assert re.search(r"^\[[#.]+\] +\d+/100 +- +- +- +- .* diverged ", out, re.MULTILINE)
    assert "adjust_learning_rate: learning rate of the next epoch set to" in out


def test_a_server_that_is_not_there_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.demo(CLASSIC_IDS, 0, "http://127.0.0.1:9") == 1
    assert "demo failed: Failed to connect" in capsys.readouterr().out


def test_an_interruption_has_a_status_of_its_own(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(status: TrainingStatus) -> Move:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "scripted", interrupted)
    assert demo.demo(CLASSIC_IDS, 0, url) == 130
    assert "interrupted" in capsys.readouterr().out


def test_a_server_that_does_not_start_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(log: Path) -> None:
        raise ServerError("no server today")

    monkeypatch.setattr(demo, "local_server", failing)
    assert demo.demo(CLASSIC_IDS, 0, None) == 1
    assert "demo failed: no server today" in capsys.readouterr().out


# For real -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.very_slow
@pytest.mark.timeout(600)
def test_the_whole_demo(tmp_path: Path) -> None:
    done = subprocess.run([*CLI, "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = re.findall(r"Grade of (\w+): (\d\.\d+)", done.stdout)
    assert [task_id for task_id, _ in scores] == list(CLASSIC_IDS)
    assert all(float(score) > 0.5 for _, score in scores)
    [address] = re.findall(r"server: (\S+),", done.stdout)
    assert not listens(address)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_it_in_the_middle_of_training_stops_its_server(
    sign: signal.Signals, tmp_path: Path
) -> None:
    seen = tmp_path / "out"
    with seen.open("w") as out:
        process = subprocess.Popen(
            [*CLI, "demo", "--tasks", "hard_cifar"], cwd=tmp_path, stdout=out, stderr=out
        )
        eventually(lambda: "\nconfigure_training" in seen.read_text(), timeout=100)
        time.sleep(1)
        process.send_signal(sign)
        assert process.wait(40) == 130
    [address] = re.findall(r"server: (\S+),", seen.read_text())
    assert not listens(address)
    assert "Traceback" not in seen.read_text()
