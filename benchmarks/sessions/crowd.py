"""Many sessions at once, as a server has them: environments on one runner, a thread for each."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Self

from openenv.core.env_server.mcp_types import CallToolAction

from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime.runner import Runner
from ml_trainer_env.server.session.saved import SavedEpisodes

Moves = Sequence[tuple[str, dict[str, Any]]]

CONFIGURE = ("configure_training", {"optimizer": "adam", "learning_rate": 0.001, "batch_size": 64})


def run(epochs: int) -> tuple[str, dict[str, Any]]:
    return "run_epochs", {"num_epochs": epochs}


class Crowd:
    """One session for each seed, ready to play."""

    def __init__(
        self,
        runner: Runner,
        task_id: str,
        seeds: Sequence[int],
        saved: SavedEpisodes | None = None,
    ) -> None:
        saved = saved or SavedEpisodes()
        self._sessions = [MLTrainerEnvironment(runner, saved=saved) for _ in seeds]
        for session, seed in zip(self._sessions, seeds, strict=True):
            session.reset(seed=seed, task_id=task_id)

    def play(self, moves: Sequence[Moves]) -> float:
        """The seconds until every session has made its own moves. Raises RuntimeError."""
        with ThreadPoolExecutor(len(self._sessions)) as threads:
            begin = time.perf_counter()
            list(threads.map(_play, self._sessions, moves))
            return time.perf_counter() - begin

    @property
    def keys(self) -> list[str]:
        return [session.state.key or "" for session in self._sessions]

    @property
    def scores(self) -> list[float]:
        """Of the episodes that have ended."""
        grades = [session._run.episode.now.grade for session in self._sessions if session._run]
        return [grade.score for grade in grades if grade]

    def close(self) -> None:
        for session in self._sessions:
            session.close()


def _play(session: MLTrainerEnvironment, moves: Moves) -> None:
    for tool, arguments in moves:
        observation: Any = session.step(CallToolAction(tool_name=tool, arguments=arguments))
        if observation.error is not None:
            raise RuntimeError(f"{tool}: {observation.error.message}")


class Side:
    """Processes that train without this environment (`side.py`), asked all at once."""

    def __init__(self, kind: str, task_id: str, numbers: Sequence[int]) -> None:
        side = [sys.executable, "-m", "ml_trainer_env.benchmarks.sessions.side", kind, task_id]
        self._commands = [[*side, str(number)] for number in numbers]

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._processes = [
            self._stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )
            for command in self._commands
        ]
        for process in self._processes:
            self._line(process)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            assert process.stdin
            process.stdin.close()  # the end of its input ends it
        self._stack.close()

    def train(self, epochs: int) -> float:
        """The seconds until each of them has trained that many."""
        begin = time.perf_counter()
        for process in self._processes:
            assert process.stdin
            print(epochs, file=process.stdin, flush=True)
        for process in self._processes:
            self._line(process)
        return time.perf_counter() - begin

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("a process that trains ended; its error is above")
        return line
