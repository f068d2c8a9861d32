"""The server of a simulated machine, and its workers, which wait. For `farm.py` alone.

`python -m ml_trainer_env.benchmarks.sessions.farm_server --host HOST --port PORT` serves;
FARM_WORKERS and FARM_EPOCH_SECONDS say what the machine is. With `--workers-at SOCKET` it is the
process of all the workers: each connects by a descriptor that comes over that socket.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache, partial
from typing import Any

import uvicorn

from ml_trainer_env.benchmarks.sessions.waiting import ENGINE, STATE_BYTES, answer
from ml_trainer_env.server import app, runs
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runs import Engine, Precision
from ml_trainer_env.server.runtime.channel import Channel
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.nameless import nameless_file
from ml_trainer_env.server.runtime.orders import Order
from ml_trainer_env.server.runtime.pool import LoadedData, Pool, Process
from ml_trainer_env.server.runtime.ray.farm import Farm
from ml_trainer_env.server.runtime.ray.nodes import Wanted
from ml_trainer_env.server.runtime.records import Records
from ml_trainer_env.server.runtime.runner import Runner, SliceRunner
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.runtime.states import States, allow_many_files
from ml_trainer_env.server.runtime.worker import SPACING, STOP
from ml_trainer_env.server.session import process
from ml_trainer_env.server.settings import current

ACTORS = "ml_trainer_env.benchmarks.sessions.farm_actors"

# The server --------------------------------------------------------------------------------------


class Waiting:
    """One of the workers, as the pool sees a process."""

    pid = 0
    returncode: int | None = None

    def send_signal(self, sig: int) -> None:
        pass

    def poll(self) -> int | None:
        return None

    def wait(self, timeout: float | None = None) -> int:
        return 0

    def kill(self) -> None:
        pass


@cache
def workers() -> socket.socket:
    """Starts their process; the socket over which it is told of each."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", __spec__.name, "--workers-at", str(theirs.fileno())]
    subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    return ours


def launch(end: socket.socket, precision: Precision) -> Process:
    socket.send_fds(workers(), [b"!"], [end.fileno()])
    return Waiting()


@cache
def runner() -> Runner:
    """As a server's, on the machine's cores."""
    count, chosen = int(os.environ["FARM_WORKERS"]), current()
    if chosen.ray_address is not None:
        return SharingRunner(on_ray(chosen.ray_address, count, chosen.max_sessions), Records())
    with nameless_file() as file:
        nothing = LoadedData(os.dup(file.fileno()), [])
    pool = Pool(count, load=lambda name: nothing, launch=launch)
    pool.prepare()
    slices = SliceRunner(pool, Cores(1, count, chosen.max_sessions), States(2**30))
    return SharingRunner(slices, Records())


def on_ray(address: str, count: int, most_waiting: int) -> Runner:
    """On that cluster, once all of its actors have started."""
    wanted = Wanted("fp32", address, count)
    farm = Farm(wanted, Cores(1, 1, most_waiting), 2**30, bridge=ACTORS)
    farm.engine()
    for worker in farm.pool._idle:
        worker.engine()
    return farm.runner


def serve(host: str, port: int) -> None:
    allow_many_files()
    runner()  # once, before many ask for it
    environment = partial(MLTrainerEnvironment, find_runner=runner, places=process.places())
    served = app.build(environment, current(), places=process.places())
    uvicorn.run(served, host=host, port=port)


# The workers' process ----------------------------------------------------------------------------


def work(control: socket.socket) -> None:
    """Take worker after worker on, a thread for each, until the server is gone."""
    seconds = float(os.environ["FARM_EPOCH_SECONDS"])
    while True:
        told, files, _, _ = socket.recv_fds(control, 1, 1)
        if not told:
            os._exit(0)
        end = socket.socket(fileno=files[0])
        threading.Thread(target=worker, args=(end, seconds), daemon=True).start()


def worker(end: socket.socket, seconds: float) -> None:
    """Answer orders as a worker does, after the time that it would have taken."""
    channel = Channel(end)
    channel.send(json.dumps({"engine": ENGINE}).encode())
    with suppress(EOFError):
        while True:
            message = channel.receive()
            message.close()
            if message.text != STOP:  # that came too late for the order before
                wait(Order.model_validate(json.loads(message.text)["order"]), channel, end, seconds)


def wait(order: Order, channel: Channel, end: socket.socket, seconds: float) -> None:
    """An epoch after another, told as a worker would tell of them. Raises `EOFError`."""
    key = order.state or runs.begin(order.workload, order.seed, Engine(**ENGINE)).key
    told_meanwhile = select.poll()  # of any descriptor: there are thousands
    told_meanwhile.register(end, select.POLLIN)
    ahead: list[dict[str, Any]] = []
    told = begun = time.monotonic()
    for done, plan in enumerate(order.plans, 1):
        left = begun + done * seconds - time.monotonic()
        stopped = bool(told_meanwhile.poll(1000 * max(0.0, left)))
        if stopped:
            channel.receive()
            time.sleep(max(0.0, begun + done * seconds - time.monotonic()))
        key = runs.next_key(key, plan)
        ahead.append(answer(key, seconds))
        now = time.monotonic()
        late = done >= order.at_least and now - begun >= order.seconds
        if late or stopped:
            break
        if now - told >= SPACING and done < len(order.plans):
            channel.send(json.dumps(ahead).encode())
            told, ahead = now, []
    ahead[-1] |= {"last": True, "key": key, "size": STATE_BYTES}
    with nameless_file() as state:
        channel.send(json.dumps(ahead).encode(), [state.fileno()])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers-at", type=int)
    options = parser.parse_args()
    if options.workers_at is None:
        serve(options.host, options.port)
    else:
        work(socket.socket(fileno=options.workers_at))


if __name__ == "__main__":
    main()
