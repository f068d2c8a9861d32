"""A process that trains: `python -m ml_trainer_env.server.worker SOCKET MEMORY`, for the pool.

It takes a job at a time from its socket and answers it. When the process at the other end is gone,
even by SIGKILL, it ends at once, in the middle of an epoch too.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from functools import cache
from queue import SimpleQueue

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server import resident, state_bytes, trainer
from ml_trainer_env.server.channel import Channel, Message
from ml_trainer_env.server.shared_data import Place, attach
from ml_trainer_env.server.team import Team


def main(descriptor: int, memory: int) -> None:
    """Work until the other end closes."""
    trainer.configure_process()
    channel = Channel(socket.socket(fileno=descriptor), memory)
    channel.send({"started": True})
    jobs: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_read, args=(channel, jobs), daemon=True).start()
    while True:
        job = jobs.get()
        try:
            channel.send(*_answer(job))
        except OSError:  # nobody is left to be told; _read ends the process
            continue


def _read(channel: Channel, jobs: SimpleQueue[Message]) -> None:
    """Jobs come one at a time, so this mostly waits for the end."""
    try:
        while True:
            jobs.put(channel.receive())
    except EOFError:
        os._exit(0)


def _answer(job: Message) -> tuple[dict[str, object], bytes]:
    try:
        _adopt_data(job)
        state, team = state_bytes.unpack(job.body), _team(job.head["threads"])
        plan = job.head["plan"]
        if plan is None:
            return {"test_accuracy": trainer.test_accuracy(state, team)}, b""
        after = trainer.advance(state, EpochPlan.model_validate(plan), team)
        return {}, state_bytes.pack(after)
    except Exception:
        return {"error": traceback.format_exc()}, b""


def _adopt_data(job: Message) -> None:
    """With the first job on a data set comes the file that holds it."""
    if job.file is None:
        return
    try:
        places = [Place(*place) for place in job.head["places"]]
        resident.adopt(job.head["dataset"], attach(job.file, places))
    finally:
        os.close(job.file)


@cache
def _team(threads: int) -> Team:
    return Team(threads)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
