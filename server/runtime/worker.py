"""A process that trains, for the pool: `python -m ml_trainer_env.server.runtime.worker`.

It takes a job at a time from its socket and answers it, and holds on to the state that came of the
last one: whoever goes on from there need not send it. When the process at the other end is gone,
even by SIGKILL, it ends at once, in the middle of an epoch too, and while it still loads torch:
what takes long to import is imported by whoever needs it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from typing import TYPE_CHECKING

from ml_trainer_env.server.runtime.channel import Channel, Message

if TYPE_CHECKING:
    from ml_trainer_env.server.engine.team import Team
    from ml_trainer_env.server.trainer import TrainingState


def main(descriptor: int, memory: int) -> None:
    """Work until the other end closes."""
    channel = Channel(socket.socket(fileno=descriptor), memory)
    jobs: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_read, args=(channel, jobs), daemon=True).start()
    from ml_trainer_env.server import trainer

    trainer.configure_process()
    with suppress(OSError):  # nobody is left to be told, and _read ends the process
        channel.send({"started": True})
    held: TrainingState | None = None
    while True:
        head, body, held = _answer(jobs.get(), held)
        with suppress(OSError):  # as above
            channel.send(head, body)


def _read(channel: Channel, jobs: SimpleQueue[Message]) -> None:
    """Jobs come one at a time, so this mostly waits for the end."""
    try:
        while True:
            jobs.put(channel.receive())
    except EOFError:
        os._exit(0)


def _answer(
    job: Message, held: TrainingState | None
) -> tuple[dict[str, object], bytes, TrainingState | None]:
    """The answer, and the state that is held from here on; a job without a state is on `held`."""
    from ml_trainer_env.models import EpochPlan
    from ml_trainer_env.server import trainer
    from ml_trainer_env.server.runtime import state_bytes

    try:
        _adopt_data(job)
        state = state_bytes.unpack(job.body) if job.body else held
        assert state is not None
        plan, team = job.head["plan"], _team(job.head["threads"])
        if plan is None:
            accuracy = trainer.test_accuracy(state, team)
            return {"test_accuracy": accuracy, "holds": state.key}, b"", state
        after = trainer.advance(state, EpochPlan.model_validate(plan), team)
        return {"holds": after.key}, state_bytes.pack(after), after
    except Exception:
        return {"error": traceback.format_exc(), "holds": None}, b"", None


def _adopt_data(job: Message) -> None:
    """With the first job on a data set comes the file that holds it."""
    from ml_trainer_env.server.engine import resident
    from ml_trainer_env.server.runtime.shared_data import Place, attach

    if job.file is None:
        return
    try:
        places = [Place(*place) for place in job.head["places"]]
        resident.adopt(job.head["dataset"], attach(job.file, places))
    finally:
        os.close(job.file)


@cache
def _team(threads: int) -> Team:
    from ml_trainer_env.server.engine.team import Team

    return Team(threads)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
