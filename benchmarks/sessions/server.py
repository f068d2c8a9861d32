"""The server's own process: its memory, its start, and its processor time for each epoch.

Clients play over WebSockets, each with seeds of its own, so nothing is known beforehand.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from ml_trainer_env.benchmarks.sessions.crowd import CONFIGURE
from ml_trainer_env.benchmarks.sessions.watcher import megabytes, processor_seconds, server_of
from ml_trainer_env.client import MLTrainerEnv
from ml_trainer_env.local_server import LOGS, local_server
from ml_trainer_env.surroundings import variables_set
from ml_trainer_env.task_ids import TaskId

LOG = LOGS / "bench-sessions-server.log"
CALLS: dict[TaskId, tuple[int, int]] = {"easy_mnist": (8, 20), "hard_cifar": (4, 3)}
OPEN = 512  # sessions
AT_ONCE = 32  # of them that are being opened

_seeds = itertools.count(1_000_000)


@contextmanager
def serving() -> Iterator[tuple[str, float]]:
    """A server in a process of its own: its URL, and the seconds until it answered `/health`."""
    with variables_set({"ML_TRAINER_MAX_SESSIONS": str(2 * OPEN)}):
        begin = time.perf_counter()
        with local_server(LOG) as url:
            yield url, time.perf_counter() - begin


def milliseconds_an_epoch(url: str, task_id: TaskId, calls: int) -> float:
    """Processor time of the server's process for each epoch that it has trained by its workers."""
    sessions, epochs = CALLS[task_id]
    asyncio.run(_played(url, task_id, 1))  # warm
    return 1000 * asyncio.run(_played(url, task_id, calls)) / (sessions * epochs * calls)


def memory(url: str) -> dict[str, float]:
    """MB of the server's process: idle, and with many open sessions that have begun."""
    server = server_of(url)
    idle = megabytes(server)
    return {"idle": idle, f"{OPEN}_sessions": asyncio.run(_with_sessions(url, server))}


def holds_torch(url: str) -> bool:
    """Whether the server's process has loaded it."""
    return "libtorch" in Path(f"/proc/{server_of(url)}/maps").read_text(encoding="utf-8")


async def _played(url: str, task_id: TaskId, calls: int) -> float:
    """The server's processor time, in seconds, for `calls` calls of each session."""
    sessions, epochs = CALLS[task_id]
    server = server_of(url)

    async def begin(env: MLTrainerEnv, seed: int) -> None:
        tool, arguments = CONFIGURE
        await env.reset(task_id=task_id, seed=seed)
        await env.call_tool(tool, **arguments)

    async def play(env: MLTrainerEnv) -> None:
        for _ in range(calls):
            await env.call_tool("run_epochs", num_epochs=epochs)

    async with AsyncExitStack() as opened:
        envs = [MLTrainerEnv(base_url=url) for _ in range(sessions)]
        for env in envs:
            await opened.enter_async_context(env)
        await asyncio.gather(*map(begin, envs, itertools.islice(_seeds, sessions)))
        before = processor_seconds(server)
        await asyncio.gather(*map(play, envs))
        return processor_seconds(server) - before


async def _with_sessions(url: str, server: int) -> float:
    async with AsyncExitStack() as opened:
        for _ in range(OPEN // AT_ONCE):
            envs = [MLTrainerEnv(base_url=url) for _ in range(AT_ONCE)]
            for env in envs:
                await opened.enter_async_context(env)
            await asyncio.gather(*(env.reset(task_id="easy_mnist", seed=0) for env in envs))
        return megabytes(server)


def measure(repetitions: int, calls: Sequence[int]) -> dict[str, list[Any]]:
    """Each figure once for every repetition; `calls` for the easy and for the hard task."""
    found: dict[str, list[Any]] = {}

    def note(name: str, value: Any) -> None:
        found.setdefault(name, []).append(value)

    for _ in range(repetitions):
        with serving() as (url, started):
            note("seconds_to_health", started)
            for task_id, count in zip(CALLS, calls, strict=True):
                note(f"server_ms_{task_id}", milliseconds_an_epoch(url, task_id, count))
            note("torch", holds_torch(url))
        with serving() as (url, _):
            time.sleep(5)  # its workers start and load the data
            for name, value in memory(url).items():
                note(f"mb_{name}", value)
    return found
