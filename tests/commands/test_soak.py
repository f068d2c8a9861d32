"""Many sessions, killed workers, vanishing clients: every episode that remains is untouched."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
from openenv.core.env_server.mcp_types import CallToolAction
from states import small

from ml_trainer_env.agents.moves import SUBMIT, configure, rate, run
from ml_trainer_env.models import TASK_IDS, EpochPlan, TrainingStatus
from ml_trainer_env.server import trainer
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime.asking import Asker
from ml_trainer_env.server.runtime.pool import PoolRunner
from ml_trainer_env.server.runtime.runner import InlineRunner, Runner
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.runtime.snapshots import Snapshots
from ml_trainer_env.server.session.saved import SavedEpisodes
from ml_trainer_env.server.trainer import TrainingState

SESSIONS = 24
EVERY = 8  # epochs between two kills


def moves(number: int) -> list[Any]:
    """Every third episode repeats another one's first moves; then each goes its own way."""
    shared_start = configure(optimizer="sgd", learning_rate=0.05, dropout=0.1)
    own = [rate(0.01 + number / 1000), run(2), run(2)]
    return [shared_start, run(3), *own, SUBMIT]


def play(number: int, runner: Runner, vanish_after: int | None = None) -> TrainingStatus | None:
    """The graded status; None when the client vanished in the middle of that move."""
    env = MLTrainerEnvironment(runner, saved=SavedEpisodes())
    env.reset(task_id=TASK_IDS[number % len(TASK_IDS)], seed=number % 6)
    status = None
    for step, (tool, arguments) in enumerate(moves(number)):
        if step == vanish_after:
            threading.Timer(0.02, env.close).start()
        observation: Any = env.step(CallToolAction(tool_name=tool, arguments=arguments))
        if step == vanish_after:
            env.close()
            return None
        assert observation.status, observation.error
        status = observation.status
    env.close()
    return status


class KilledPool(PoolRunner):
    """Kills one of its workers, busy or idle, for every so many epochs that it has trained.

    By epochs and not by the clock: on a busy machine a worker needs longer to start than between
    two kills, and none would ever train.
    """

    def __init__(self, chance: random.Random) -> None:
        super().__init__(threads=2, cores=2, load=small)
        self.killed = 0
        self._chance = chance
        self._epochs = itertools.count(1)

    def advance(
        self, state: TrainingState, plan: EpochPlan, asker: Asker | None = None
    ) -> TrainingState:
        after = super().advance(state, plan, asker)
        if next(self._epochs) % EVERY == 0:
            alive = [process for process in self.processes() if process.poll() is None]
            if alive:
                self._chance.choice(alive).kill()
                self.killed += 1
        return after


@cache
def inline() -> InlineRunner:
    return InlineRunner(threads=1)


@pytest.mark.slow
def test_every_remaining_episode_ends_as_it_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    monkeypatch.setattr(trainer, "resident", small)
    vanishing = {number: chance.randrange(6) for number in range(0, SESSIONS, 5)}
    pool = KilledPool(chance)
    runner = SharingRunner(pool, Snapshots(20 * 2**20), verify=0.1)

    def session(number: int) -> TrainingStatus | None:
        return play(number, runner, vanishing.get(number))

    with ThreadPoolExecutor(SESSIONS) as threads:
        ended = list(threads.map(session, range(SESSIONS)))
    assert pool.killed >= 3
    assert [number for number, status in enumerate(ended) if status is None] == list(vanishing)
    for number, status in enumerate(ended):
        if status is not None:
            alone = play(number, inline())
            assert alone is not None
            assert status.grade == alone.grade
            assert status.reward_terms == alone.reward_terms
    assert runner._in_progress == {}
    assert pool._cores.waiting == 0
    assert pool._cores._free == pool._cores.total
    assert runner._snapshots.used <= 20 * 2**20
    processes = pool.processes()
    pool.close()
    assert all(process.returncode is not None for process in processes)


@pytest.mark.slow
@pytest.mark.very_slow
@pytest.mark.timeout(900)  # the half minute, what is then still in progress, and all of it alone
def test_the_soak_itself_in_short() -> None:
    """Over WebSockets, with the real networks. Whether memory is flat takes longer to see."""
    arguments = ["--minutes", "0.5", "--sessions", "12", "--kill-every", "10"]
    command = [sys.executable, "-m", "ml_trainer_env.benchmarks.soak", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ended.stdout, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["failures"] == []
    assert found["episodes"] > 0
    assert found["killed"] > 0
    assert found["different_scores"] == found["places_taken"] == 0
