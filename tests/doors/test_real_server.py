"""The server as it is started for real, training real networks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from checkout import ROOT
from live import eventually, free_port

from ml_trainer_env import MLTrainerEnv, TrainingStatus


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = ["-m", "ml_trainer_env.server.app", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as out:
        server = subprocess.Popen([sys.executable, *command], stdout=out, stderr=out, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            return httpx.get(url + "/health").status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(healthy, timeout=100)  # reading torch from a cold disk takes long
        yield url
    finally:
        server.terminate()
        server.wait(30)
    assert "Traceback" not in log.read_text()


def play(url: str, seed: int, cuts: tuple[int, ...]) -> list[dict[str, Any]]:
    """An episode of the easy task with its training cut into calls: what is seen of each."""
    with MLTrainerEnv(base_url=url) as env:
        env.reset(task_id="easy_mnist", seed=seed)
        env.call_tool("configure_training", optimizer="sgd", learning_rate=0.05, dropout=0.1)
        seen: list[TrainingStatus] = [env.call_tool("run_epochs", num_epochs=n) for n in cuts]
        seen.append(env.call_tool("submit_model"))
    return [status.model_dump() for status in seen]


def test_real_training_gets_somewhere_and_is_graded(url: str) -> None:
    trained, graded = play(url, 0, (5,))
    assert trained["val_accuracy"] > 0.85
    assert 0 < trained["val_loss"] < 1
    assert graded["grade"]["score"] > 0
    assert graded["grade"]["hidden_test_accuracy"] > 0.8


def test_an_episode_is_the_same_again_and_beside_others(url: str) -> None:
    seeds = [0, 1, 0, 2, 0]
    with ThreadPoolExecutor(len(seeds)) as pool:
        together = list(pool.map(lambda seed: play(url, seed, (2, 2)), seeds))
    alone = play(url, 0, (2, 2))
    assert together[0] == together[2] == together[4] == alone
    assert together[1] != alone


def test_how_a_training_is_cut_into_calls_changes_no_bit(url: str) -> None:
    whole = play(url, 3, (4,))
    parts = play(url, 3, (1, 3))
    for name in ("val_loss", "train_loss", "val_loss_history_last_10", "best_val_epoch"):
        assert whole[0][name] == parts[1][name]
    assert whole[1]["grade"] == parts[2]["grade"]


@pytest.mark.parametrize("task_id", ["medium_fashion", "hard_cifar"])
def test_the_other_tasks_train_too(url: str, task_id: str) -> None:
    with MLTrainerEnv(base_url=url) as env:
        env.reset(task_id=task_id)
        env.call_tool("configure_training", augmentation=True)
        status = env.call_tool("run_epochs", num_epochs=1)
        assert status.val_accuracy > 0.2
        (epoch,) = env.state().epochs
        assert (epoch.record.val_accuracy, epoch.shared) == (status.val_accuracy, False)
        assert epoch.seconds > 0


def test_a_learning_rate_of_ten_diverges_and_can_be_cured(url: str) -> None:
    with MLTrainerEnv(base_url=url) as env:
        env.reset()
        env.call_tool("configure_training", optimizer="sgd", learning_rate=0.05)
        best = env.call_tool("run_epochs", num_epochs=2)
        env.call_tool("adjust_learning_rate", new_lr=10)
        assert env.call_tool("run_epochs", num_epochs=3).is_diverged
        resumed = env.call_tool("adjust_learning_rate", new_lr=0.05)
        assert (resumed.is_diverged, resumed.val_loss) == (False, best.val_loss)
        assert env.call_tool("run_epochs", num_epochs=1).val_accuracy > 0.8
