"""Many sessions, killed workers, vanishing clients: every episode that remains is untouched."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from openenv.core.env_server.mcp_types import CallToolAction
from real import inline
from states import small

from ml_trainer_env.agents.moves import SUBMIT, configure, rate, run
from ml_trainer_env.benchmarks.sessions.soak import Script, Soak, judge, scripts
from ml_trainer_env.benchmarks.sessions.watcher import Watcher
from ml_trainer_env.models import (
    TrainingStatus,
)
from ml_trainer_env.server.engine import varied
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runs import Plan, Run
from ml_trainer_env.server.runtime.asking import Asker
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.pool import LoadedData, Pool
from ml_trainer_env.server.runtime.records import Records
from ml_trainer_env.server.runtime.runner import Runner, SliceRunner, Trained
from ml_trainer_env.server.runtime.shared_data import share
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.session.saved import SavedEpisodes
from ml_trainer_env.task_ids import CLASSIC_IDS

SESSIONS = 24
EVERY = 8  # epochs between two kills
BUDGET = 20 * 2**20  # bytes of states


def moves(number: int) -> list[Any]:
    """Every third episode repeats another one's first moves; then each goes its own way."""
    shared_start = configure(optimizer="sgd", learning_rate=0.05, dropout=0.1)
    own = [rate(0.01 + number / 1000), run(2), run(2)]
    return [shared_start, run(3), *own, SUBMIT]


def play(number: int, runner: Runner, vanish_after: int | None = None) -> TrainingStatus | None:
    """The graded status; None when the client vanished in the middle of that move."""
    env = MLTrainerEnvironment(runner, saved=SavedEpisodes())
    env.reset(task_id=CLASSIC_IDS[number % len(CLASSIC_IDS)], seed=number % 6)
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


def load(dataset: str) -> LoadedData:
    """Little of it, for the workers."""
    data = share(small(dataset))
    with data.file:
        return LoadedData(os.dup(data.file.fileno()), data.places)


class KillingRunner(SliceRunner):
    """Kills one of its workers, busy or idle, for every so many epochs that they have trained.

    By epochs and not by the clock: on a busy machine a worker needs longer to start than between
    two kills, and none would ever train.
    """

    def __init__(self, chance: random.Random) -> None:
        self.pool = Pool(2, load=load)
        super().__init__(self.pool, Cores(threads=2, total=2), States(BUDGET))
        self.killed = 0
        self._chance = chance
        self._trained = itertools.count(1)

    def train(
        self, run: Run, plans: Sequence[Plan], asker: Asker | None = None
    ) -> Generator[Trained]:
        with closing(super().train(run, plans, asker)) as epochs:
            for epoch in epochs:
                if next(self._trained) % EVERY == 0:
                    self._kill()
                yield epoch

    def _kill(self) -> None:
        alive = [process for process in self.pool.processes() if process.poll() is None]
        if alive:
            self._chance.choice(alive).kill()
            self.killed += 1


@pytest.mark.slow
def test_every_remaining_episode_ends_as_it_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    monkeypatch.setattr(varied, "resident", small)
    vanishing = {number: chance.randrange(6) for number in range(0, SESSIONS, 5)}
    workers, alone = KillingRunner(chance), inline()
    runner = SharingRunner(workers, Records(), verify=0.1)

    def session(number: int) -> TrainingStatus | None:
        return play(number, runner, vanishing.get(number))

    with ThreadPoolExecutor(SESSIONS) as threads:
        ended = list(threads.map(session, range(SESSIONS)))
    assert workers.killed >= 3
    assert [number for number, status in enumerate(ended) if status is None] == list(vanishing)
    for number, status in enumerate(ended):
        if status is not None:
            expected = play(number, alone)
            assert expected is not None
            assert status.grade == expected.grade
            assert status.reward_terms == expected.reward_terms
    assert runner._claims._made == {}
    assert workers.cores.waiting == 0
    assert workers.cores._free == workers.cores.total
    assert workers.states.used <= BUDGET
    processes = workers.pool.processes()
    workers.pool.close()
    assert all(process.poll() is not None for process in processes)


class Waiting(Soak):
    """Its clients play until somebody was to be killed, and are done."""

    def __init__(self) -> None:
        super().__init__("http://nowhere", random.Random(0))
        self.struck = threading.Event()

    async def client(self, plan: Sequence[Script], until: float) -> None:
        await asyncio.to_thread(self.struck.wait)

    def kill(self) -> bool:
        """The first time; however late the clients notice, nobody is left for another."""
        first = not self.struck.is_set()
        self.struck.set()
        return first


def test_a_soak_counts_whom_it_kills() -> None:
    soak = Waiting()
    soak.run(scripts(), 3, 60.0, soak.kill, every=0.05)
    assert soak.killed == 1


def test_who_fails_to_kill_is_heard() -> None:
    soak = Waiting()

    def kill() -> bool:
        soak.struck.set()
        raise OSError("no node can be started")

    with pytest.raises(OSError, match="no node"):
        soak.run(scripts(), 3, 60.0, kill, every=0.05)


@pytest.mark.parametrize(
    ("begun", "killed", "passes"),
    [(3, 1, True), (3, 0, False), (4, 1, False)],
)
def test_a_soak_passes_where_all_were_graded_and_somebody_was_killed(
    begun: int, killed: int, passes: bool
) -> None:
    soak, script = Waiting(), scripts()[0]
    soak.scores += [(script, 0.5)] * 2
    soak.begun, soak.vanished, soak.killed = begun, 1, killed
    seen = Watcher()
    seen.health, seen.late, seen.memory = [(0.0, 0.01), (9.0, 0.01), (9.1, 0.01)], [0.0], [1.0] * 3
    assert judge(soak, seen, taken=0, expected={script: 0.5})["passed"] == passes


@pytest.mark.slow
@pytest.mark.very_slow
@pytest.mark.timeout(900)  # the half minute, what is then still in progress, and all of it alone
def test_the_soak_itself_in_short() -> None:
    """Over WebSockets, with the real networks. Whether memory is flat takes longer to see."""
    arguments = ["--minutes", "0.5", "--sessions", "12", "--kill-every", "10"]
    command = [sys.executable, "-m", "ml_trainer_env.benchmarks.sessions.soak", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ended.stdout, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["failures"] == []
    assert found["episodes"] > 0
    assert found["killed"] > 0
    assert found["different_scores"] == found["places_taken"] == 0
