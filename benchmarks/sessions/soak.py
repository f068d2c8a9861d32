"""The soak: many clients of a real server, workers killed, clients vanishing. `make soak`.

For ten minutes 64 clients play short episodes of all three tasks over the WebSocket. Every 20 s a
worker process is killed; at random, one client in five vanishes in the middle of an episode and
another comes. Nobody else may be told of a failure. In the end every finished episode must have the
score that it has alone, to the bit; no place may be taken; memory must be flat; and somebody must
have been killed. Exit status 1 if not. The last line is JSON.

    make soak ARGS='--minutes 1 --sessions 16'
    make soak ARGS='--ray --kill-every 60'    # on two Ray nodes, of which one is killed at a time
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from ml_trainer_env.agents.session import CONNECTION_ERRORS
from ml_trainer_env.benchmarks.sessions.crowd import Crowd, run
from ml_trainer_env.benchmarks.sessions.watcher import Watcher, children, server_of, watching
from ml_trainer_env.client import MLTrainerEnv
from ml_trainer_env.local_server import local_server
from ml_trainer_env.server import trainer
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.inline import Inline
from ml_trainer_env.server.runtime.runner import Runner, SliceRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.surroundings import variables_set
from ml_trainer_env.task_ids import CLASSIC_IDS, TaskId
from ml_trainer_env.terminal import stdout

if TYPE_CHECKING:
    from ml_trainer_env.benchmarks.sessions.ray_nodes import Nodes

LOG = Path("outputs") / "logs" / "soak-server.log"
SHORTEST = 0.5  # minutes; memory is looked at every few seconds
KILL_EVERY = 20.0  # seconds
VANISHING = 0.2  # share of the episodes whose client vanishes
REFUSED = "try again in about"  # what the server says at either count of its places
ARRIVAL = 5.0  # seconds in which all clients come at once to a server that has just started
HEALTH_TARGET = 50.0  # milliseconds, at full load
SETTLE = 30.0  # seconds that the server gets to notice the last ones
FLAT = 1.05  # memory of the last third over that of the middle one
EPOCHS: dict[TaskId, int] = {"easy_mnist": 6, "medium_fashion": 2, "hard_cifar": 1}
SCRIPTS = 24
BUDGET = 100 * 2**20  # bytes of states, of the episodes alone
STATES = 2**30  # of the server's, with Ray


class Script(NamedTuple):
    """An episode: what decides its score."""

    task_id: TaskId
    seed: int
    learning_rate: float

    @property
    def moves(self) -> list[tuple[str, dict[str, Any]]]:
        epochs = EPOCHS[self.task_id]
        first = {"optimizer": "adamw", "learning_rate": self.learning_rate, "dropout": 0.1}
        return [
            ("configure_training", first),
            run(epochs),
            ("toggle_augmentation", {"enabled": True, "strength": 0.5}),
            run(epochs),
            ("submit_model", {}),
        ]


def scripts(tasks: Sequence[TaskId] = CLASSIC_IDS) -> list[Script]:
    of: list[TaskId] = [tasks[number % len(tasks)] for number in range(SCRIPTS)]
    return [Script(task, k, 0.001 * (1 + k % 4)) for k, task in enumerate(of)]


def alone(script: Script, runner: Runner) -> float:
    """The score of the episode, played by itself."""
    crowd = Crowd(runner, script.task_id, [script.seed])
    crowd.play([script.moves])
    (score,) = crowd.scores
    crowd.close()
    return score


class Soak:
    """What happened."""

    def __init__(self, url: str, chance: random.Random) -> None:
        self.url, self.chance = url, chance
        self.scores: list[tuple[Script, float]] = []
        self.failures: list[str] = []
        self.begun = self.vanished = self.killed = self.refused = 0

    async def client(self, plan: Sequence[Script], until: float) -> None:
        """Play one episode after another, up to the first that fails."""
        while time.monotonic() < until:
            script = self.chance.choice(plan)
            try:
                await self.episode(script)
            except CONNECTION_ERRORS as error:
                self.failures.append(f"{script}: {error!r}")
                return

    async def episode(self, script: Script) -> None:
        """Play it in a session of its own, unless the client vanishes in the middle."""
        vanish_at = self.chance.randrange(1, len(script.moves))
        vanishes = self.chance.random() < VANISHING
        env = await self.begin(script)
        self.begun += 1
        for number, (tool, arguments) in enumerate(script.moves):
            if vanishes and number == vanish_at:
                await self.vanish(env, tool, arguments)
                self.vanished += 1
                break
            status = await env.call_tool(tool, **arguments)
            if status.grade:
                self.scores.append((script, status.grade.score))
        with suppress(*CONNECTION_ERRORS):  # nobody listens to who has vanished
            await env.close()

    async def vanish(self, env: MLTrainerEnv, tool: str, arguments: dict[str, Any]) -> None:
        """Within a second of a call, without a farewell."""
        call = asyncio.create_task(env.call_tool(tool, **arguments))
        await asyncio.sleep(self.chance.uniform(0, 1))
        assert env._ws is not None
        env._ws.transport.abort()
        with suppress(*CONNECTION_ERRORS):
            await call

    async def begin(self, script: Script) -> MLTrainerEnv:
        """A session that has begun; the place of one that has just vanished may not be free yet."""
        while True:
            env = MLTrainerEnv(base_url=self.url)
            try:
                await env.reset(task_id=script.task_id, seed=script.seed)
            except RuntimeError as error:
                if REFUSED not in str(error):
                    raise
                self.refused += 1
                await env.close()
                await asyncio.sleep(1)
            else:
                return env

    def run(
        self,
        plan: Sequence[Script],
        sessions: int,
        seconds: float,
        kill: Callable[[], bool],
        every: float,
    ) -> None:
        """The clients in a thread: Ray starts nodes in the main one alone, and who fails to kill is
        to be heard.
        """
        until = time.monotonic() + seconds

        async def clients() -> None:
            await asyncio.gather(*(self.client(plan, until) for _ in range(sessions)))

        with ThreadPoolExecutor(1) as thread:
            playing = thread.submit(asyncio.run, clients())
            while wait([playing], timeout=every).not_done:
                self.killed += kill()
            playing.result()


class KillWorkers:
    """Kill a worker of the server, busy or idle; whether there was one.

    Not the successor of the one before, if there is another: three in a row at one epoch make the
    server give that epoch up, and on a slow machine a worker is hardly ready until the next.
    """

    def __init__(self, server: int, chance: random.Random) -> None:
        self._server, self._chance = server, chance
        self._before: list[int] = []

    def __call__(self) -> bool:
        workers = children(self._server)
        known = [worker for worker in workers if worker in self._before]
        self._before = workers
        if workers:
            os.kill(self._chance.choice(known or workers), signal.SIGKILL)
        return bool(workers)


def kill_eldest(nodes: Nodes) -> bool:
    """Kill a node, and have another one join."""
    nodes.kill(nodes.training[0])
    nodes.add()
    return True


def places_taken(url: str, sessions: int) -> int:
    """How many of the server's places are still taken, once it had time to notice the last ends."""
    create = {"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create", "params": {}}
    free = 0
    deadline = time.monotonic() + SETTLE
    while free < sessions and time.monotonic() < deadline:
        if "result" in httpx.post(f"{url}/mcp", json=create, timeout=60).json():
            free += 1
        else:
            time.sleep(1)
    return sessions - free


def judge(soak: Soak, seen: Watcher, taken: int, expected: dict[Script, float]) -> dict[str, Any]:
    wrong = [script for script, score in soak.scores if score != expected[script]]
    third = len(seen.memory) // 3
    middle = statistics.median(seen.memory[third : 2 * third])
    last = statistics.median(seen.memory[2 * third :])
    arrival = [1000 * took for since, took in seen.health if since < ARRIVAL]
    health = [1000 * took for since, took in seen.health if since >= ARRIVAL]
    ungraded = soak.begun - len(soak.scores) - soak.vanished
    right = bool(soak.scores and soak.killed) and not (soak.failures or wrong or ungraded)
    return {
        "episodes": len(soak.scores),
        "ungraded": ungraded,
        "failures": soak.failures,
        "different_scores": len(wrong),
        "vanished": soak.vanished,
        "killed": soak.killed,
        "refused": soak.refused,
        "places_taken": taken,
        "health_ms": {
            "requests": len(health),
            "median": statistics.median(health),
            "p99": statistics.quantiles(health, n=100)[98],
            "max": max(health),
            "over_target": sum(took > HEALTH_TARGET for took in health),
            "max_while_all_arrive": max(arrival),
            "watcher_late_max": 1000 * max(seen.late),
        },
        "memory_mb": {"middle": round(middle), "last": round(last), "peak": max(seen.memory)},
        "passed": right and not taken and last <= FLAT * middle,
    }


@contextmanager
def on_ray() -> Iterator[Nodes]:
    """Two nodes of one core, on which servers that are started within the block train."""
    from ml_trainer_env.benchmarks.sessions.ray_nodes import nodes, store_for

    with nodes(1, 1, store=store_for(STATES, 2)) as cluster:
        variables = {
            "ML_TRAINER_RUNNER": "ray",
            "ML_TRAINER_RAY_ADDRESS": cluster.address,
            "ML_TRAINER_SNAPSHOT_MB": str(STATES // 2**20),
        }
        with variables_set(variables):
            yield cluster


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make soak", description="Many clients and accidents.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--places", type=int, help="of the server; left out: as many as sessions")
    parser.add_argument("--tasks", nargs="+", choices=CLASSIC_IDS, default=list(CLASSIC_IDS))
    parser.add_argument("--kill-every", type=float, default=KILL_EVERY, help="seconds")
    parser.add_argument("--ray", action="store_true", help="two nodes of a Ray cluster train")
    parser.add_argument("--sharing", choices=("on", "off"), default="off", help="of epochs")
    options = parser.parse_args(argv)
    if options.minutes < SHORTEST:
        parser.error(f"--minutes: must be at least {SHORTEST:g}; got {options.minutes:g}")
    console, plan, places = stdout(), scripts(options.tasks), options.places or options.sessions
    os.environ |= {
        "ML_TRAINER_MAX_SESSIONS": str(places),
        "ML_TRAINER_SHARING": options.sharing,
        "ML_TRAINER_VERIFY_SHARED": "0.1",
    }
    trainer.configure_process()
    runner = SliceRunner(Inline(), Cores(threads=1), States(BUDGET))
    with console.status("the episodes alone"):
        expected = {script: alone(script, runner) for script in plan}
    runner.states.close()
    with (
        on_ray() if options.ray else nullcontext() as nodes,
        local_server(LOG) as url,
        console.status(f"{options.sessions} clients, see {LOG}"),
    ):
        chance = random.Random(0)
        soak = Soak(url, chance)
        kill = partial(kill_eldest, nodes) if nodes else KillWorkers(server_of(url), chance)
        with watching(url) as seen:
            soak.run(plan, options.sessions, 60 * options.minutes, kill, options.kill_every)
        # A client that has just vanished has a place until the server has noticed.
        taken = places_taken(url, places)
    found = judge(soak, seen, taken, expected)
    print(json.dumps(found))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
