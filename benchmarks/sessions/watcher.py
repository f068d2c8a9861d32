"""Watches a server from a process of its own, which does nothing else: `/health`, and memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import httpx

from ml_trainer_env import leash
from ml_trainer_env.benchmarks.timing import seconds_of

EVERY = 0.1  # seconds between two requests
MEMORY_EVERY = 5.0  # seconds: adding up its pages holds a server up


class Watcher:
    """What was seen; complete once the block of `watching` is left."""

    def __init__(self) -> None:
        self.health: list[tuple[float, float]] = []  # seconds since the start, seconds it took
        self.late: list[float] = []  # seconds that it woke up too late itself: the machine's part
        self.memory: list[float] = []  # MB of server and workers, and of files in memory


@contextmanager
def watching(url: str) -> Iterator[Watcher]:
    """Watch the server at `url` beside the block."""
    watcher = Watcher()
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_watch, args=(url, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()  # it has started
        yield watcher
        ours.send("enough")
        watcher.health, watcher.late, watcher.memory = ours.recv()
    finally:
        ours.close()
        process.join()


def _watch(url: str, end: Connection) -> None:
    health: list[tuple[float, float]] = []
    late: list[float] = []
    memory: list[float] = []
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:

        def ask() -> None:
            http.get("/health").raise_for_status()

        ask()
        end.send("ready")
        begin = time.monotonic()
        next_memory = MEMORY_EVERY
        with suppress(EOFError):  # the benchmark failed: nobody wants to know
            asleep = time.monotonic()
            while not end.poll(EVERY):
                late.append(time.monotonic() - asleep - EVERY)
                since = time.monotonic() - begin
                health.append((since, seconds_of(ask)))
                if since >= next_memory:
                    next_memory += MEMORY_EVERY
                    server = server_of(url)
                    processes = sum(map(megabytes, [server, *children(server)]))
                    memory.append(processes + nameless_megabytes(server))
                asleep = time.monotonic()
            end.recv()
            end.send((health, late, memory))


def server_of(url: str) -> int:
    """The process that serves `url`, which whoever holds its leash names, too."""
    port = url.rpartition(":")[2]
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = file.read_text(encoding="utf-8")
            if f"--port\0{port}\0" in command and leash.__file__ not in command:
                return int(file.parent.name)
    raise RuntimeError("the server is gone")


def children(pid: int) -> list[int]:
    text = ""
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            text += file.read_text(encoding="utf-8")
    return [int(child) for child in text.split()]


def nameless_megabytes(pid: int) -> float:
    """Of the files in memory that the process has open: states, and data sets."""
    files: dict[int, int] = {}
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):
            if str(link.readlink()).startswith("/memfd:ml-trainer"):
                about = link.stat()
                files[about.st_ino] = about.st_blocks * 512
    return sum(files.values()) / 2**20


def processor_seconds(pid: int) -> float:
    """That the process has had, its children left out."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def megabytes(pid: int) -> float:
    """Memory of its own; what it shares with others is counted once, by its share."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
