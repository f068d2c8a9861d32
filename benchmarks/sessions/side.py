"""Training without this environment, in a process of its own: what many sessions are compared with.

As `python -m ml_trainer_env.benchmarks.sessions.side`, with

    engine TASK SEED      the engine, on one thread
    threads TASK COUNT    COUNT trainings in the usual way, each in a thread of torch's default team

A line of standard input is a number of epochs; the answer, a line, is the seconds they took. The
first line of output says that the process is ready.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import trainer
from ml_trainer_env.server.tasks import TASKS, Task

PLAN = EpochPlan(
    optimizer="adam",
    learning_rate=0.001,
    batch_size=64,
    weight_decay=0.0,
    dropout=0.0,
    augmentation=0.0,
)


def engine(task: Task, seed: int) -> Callable[[int], None]:
    """A loop over `advance`, warmed up."""
    trainer.configure_process()
    state = trainer.advance(trainer.start(task.workload, seed), PLAN)

    def train(epochs: int) -> None:
        nonlocal state
        for _ in range(epochs):
            state = trainer.advance(state, PLAN)

    return train


def threads(task: Task, count: int) -> Callable[[int], None]:
    """What a server does that trains in its request threads; warmed up."""
    from ml_trainer_env.benchmarks.engine.usual import Training

    trainings = [Training(task, augmentation=0.0) for _ in range(count)]
    trainings[0].epoch(limit=float("inf"))

    def train(epochs: int) -> None:
        def one(training: Training) -> None:
            for _ in range(epochs):
                training.epoch(limit=float("inf"))

        with ThreadPoolExecutor(count) as pool:
            list(pool.map(one, trainings))

    return train


def main(kind: str, task_id: str, number: str) -> None:
    make = {"engine": engine, "threads": threads}[kind]
    train = make(TASKS[task_id], int(number))
    print("ready", flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        train(int(line))
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
