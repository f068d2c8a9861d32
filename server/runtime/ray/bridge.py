"""The process between a server and a Ray cluster: `python -m …runtime.ray.bridge`.

For every worker that the server starts there is an actor here, and a socket on which the worker's
protocol is spoken (`runtime/worker.py`): the server cannot tell an actor from a process. Ray ends a
program whose head or node is gone, so the program is this one and not the server. It ends with the
server, and its actors with it.

States lie in Ray's object store, where the actor that made them ran; this process only knows them
by key. They outlive the actor, and go with the node or with this process.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ml_trainer_env.server.data.folder import NAMES
from ml_trainer_env.server.runs import Engine
from ml_trainer_env.server.runtime.channel import LENGTH, Channel, Message
from ml_trainer_env.server.runtime.cores import available
from ml_trainer_env.server.runtime.orders import Answer
from ml_trainer_env.server.runtime.ray.actors import BESIDE, Answers, Loaded, Trainer
from ml_trainer_env.server.runtime.ray.nodes import CLAIM, Node, Nodes, Wanted, label
from ml_trainer_env.server.runtime.worker import STOP

LOOK = 1.0  # seconds between two looks at the cluster
PATIENCE = 10.0  # seconds that the head gets to answer; beyond it it counts as gone
BEGINNING = 120.0  # seconds that an actor gets to load torch
ENDING = 5.0  # seconds that Ray gets to end
CONCURRENCY = 4  # of calls beside the training
REACHING = 5.0  # seconds that the head's machine gets to answer
STORING = 256  # actors whose states are waited for at a time

Hears = Callable[[Message], object]


class Bridge:
    """All of this process; lives in one event loop."""

    def __init__(self, control: Channel, wanted: Wanted, trainer: type) -> None:
        self.control = control
        self.precision = wanted.precision
        self.nodes = Nodes(wanted.most, wanted.engine)
        self.states: dict[str, ObjectRef[Any]] = {}
        self.data = Data()
        self.storing = ThreadPoolExecutor(STORING, "storing")
        options: dict[str, Any] = {
            "num_cpus": 0,  # the claim is on the resource that names the engine
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 1,
            "concurrency_groups": {BESIDE: CONCURRENCY},
        }
        self.actors: Any = ray.remote(**options)(trainer)
        self.wanted: str | None = None  # the label of the first actor's engine
        self._told: tuple[object, ...] = ()
        self._workers: dict[int, asyncio.Task[None]] = {}

    async def run(self, hears: Future[Hears]) -> None:
        """Until the cluster is gone."""
        loop = asyncio.get_running_loop()
        hears.set_result(partial(loop.call_soon_threadsafe, self._take))
        while True:
            try:
                seen = await asyncio.wait_for(asyncio.to_thread(ray.nodes), PATIENCE)
            except (RayError, TimeoutError):
                # At once: without a head nothing of Ray comes to an end by itself.
                fail(self.control, "the head of the Ray cluster does not answer")
            gone = await self.nodes.see(seen)
            self.data.forget(gone)
            self._tell_cores()
            await asyncio.sleep(LOOK)

    def _tell_cores(self) -> None:
        nodes = self.nodes
        told = (nodes.cores, nodes.narrowest, nodes.others, nodes.foreign, nodes.label)
        if told != self._told:
            self._told = told
            names = ("cores", "narrowest", "others", "foreign", "engine")
            self.tell(dict(zip(names, told, strict=True)))

    def tell(self, content: dict[str, Any]) -> None:
        """The server."""
        self.control.send(json.dumps(content).encode())

    def _take(self, message: Message) -> None:
        """What the server says."""
        content = json.loads(message.text)
        if "start" in content:
            number: int = content["start"]
            worker = Worker(self, socket.socket(fileno=message.files[0]))
            task = asyncio.create_task(worker.run())
            self._workers[number] = task
            task.add_done_callback(lambda _: self._ended(number))
        elif "kill" in content and (task := self._workers.get(content["kill"])):
            task.cancel()
        for key in content.get("forget", ()):
            self.states.pop(key, None)

    def _ended(self, number: int) -> None:
        del self._workers[number]
        self.tell({"ended": number})


class Data:
    """Where each node has its data sets: loaded by one actor, mapped by the others."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, str], asyncio.Lock] = {}
        self._loaded: dict[tuple[str, str], Loaded] = {}

    async def provide(self, actor: Any, node: Node, name: str) -> None:
        """The actor has the data set, mapped."""
        place = (node.id, name)
        async with self._at.setdefault(place, asyncio.Lock()):
            loaded = self._loaded.get(place)
            if loaded is not None and await actor.adopt.remote(name, loaded):
                return
            loaded = await actor.load.remote(name)
            await actor.adopt.remote(name, loaded)
            self._loaded[place] = loaded

    def forget(self, nodes: set[str]) -> None:
        """They are gone."""
        self._loaded = {at: data for at, data in self._loaded.items() if at[0] not in nodes}


class Worker:
    """An actor, and the server's socket for it."""

    def __init__(self, bridge: Bridge, end: socket.socket) -> None:
        self._bridge = bridge
        self._end = end
        self._orders = asyncio.Queue[bytes]()
        self._number = 0  # of the latest order
        self._holds: str | None = None  # the key of the state that the actor has
        self._has: set[str] = set()  # data sets
        self._actor: Any = None

    async def run(self) -> None:
        """Until either end is gone."""
        self._end.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=self._end)
        self._writer = writer
        work = asyncio.create_task(self._work())
        listen = asyncio.create_task(self._listen(reader))
        try:
            await asyncio.wait((work, listen), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            listen.cancel()
            await asyncio.gather(work, listen, return_exceptions=True)
            writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                text = await reader.readexactly(length)
                if text != STOP:
                    self._orders.put_nowait(text)
                elif self._actor is not None:
                    self._actor.stop.remote(self._number)

    async def _work(self) -> None:
        node = await self._bridge.nodes.take()
        lost = True
        try:
            self._actor = self._bridge.actors.options(
                resources={node.label: CLAIM},
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            ).remote(self._bridge.precision)
            hello: bytes = await asyncio.wait_for(self._actor.engine.remote(), BEGINNING)
            if not self._is_of(node, hello):
                return
            await self._tell(hello)
            while True:
                await self._carry_out(await self._orders.get(), node)
        except asyncio.CancelledError:  # the server needs it no longer
            lost = False
            raise
        except (RayError, TimeoutError) as error:
            why = str(error).strip().split("\n")[0] or type(error).__name__
            self._bridge.tell({"lost": node.id, "why": why})
        finally:
            if self._actor is not None:
                with suppress(RayError):
                    ray.kill(self._actor)
            await self._bridge.nodes.give_back(node, lost=lost)

    def _is_of(self, node: Node, hello: bytes) -> bool:
        """Whether the actor found the engine that its node names; what failed is the server's."""
        content = json.loads(hello)
        if "error" in content:
            return True
        engine = Engine(**content["engine"])
        # A label is of fp32. With another precision the first actor says what the others have.
        found = label(engine)
        if engine.precision == "fp32":
            wanted = node.label
        else:
            wanted = self._bridge.wanted = self._bridge.wanted or found
        if found == wanted:
            return True
        self._bridge.nodes.close(node)
        self._bridge.tell({"closed": node.id, "names": node.label, "has": found})
        return False

    async def _carry_out(self, text: bytes, node: Node) -> None:
        self._number += 1
        order: dict[str, Any] = json.loads(text)["order"]
        key: str | None = order["state"]
        state = None
        if key is not None and key != self._holds:
            state = self._bridge.states.get(key)
            if state is None:
                await self._unreadable()
                return
        try:
            await self._provide(order["workload"]["dataset"], node)
            perform = self._actor.perform.options(num_returns="streaming")
            await self._relay(perform.remote(self._number, json.dumps(order).encode(), state))
        except ObjectLostError:
            self._bridge.states.pop(key or "", None)
            await self._unreadable()
        except RayTaskError as error:
            self._holds = None
            if state is not None and isinstance(error.cause, RayError):  # it could not be stored
                self._bridge.states.pop(key or "", None)
                await self._unreadable()
            else:  # our mistake, and not the actor's end
                await self._tell(_last(Answer(last=True, error=str(error))))

    async def _provide(self, name: str, node: Node) -> None:
        """The data set, unless whoever trains makes it."""
        if name.partition("/")[0] in NAMES and name not in self._has:
            await self._bridge.data.provide(self._actor, node, name)
            self._has.add(name)

    async def _relay(self, stream: Any) -> None:
        async for each in stream:
            answers: Answers = ray.get(each)  # small, so it has come with the news of it
            if answers.last:
                self._holds = answers.key
            if answers.state_follows and answers.key is not None:
                self._bridge.states[answers.key] = await self._stored(stream)
            await self._tell(answers.text)

    async def _stored(self, stream: Any) -> ObjectRef[Any]:
        """The state that comes next. It stays where it is: awaited as the answers are, it would be
        fetched to this machine.

        Raises `RayError` where its actor ended before it was stored: the stream ends with that.
        """
        loop = asyncio.get_running_loop()
        state = await loop.run_in_executor(self._bridge.storing, next, stream, None)
        if state is None or state == stream.completed():
            await stream.completed()
        assert state is not None
        return state

    async def _unreadable(self) -> None:
        await self._tell(_last(Answer(last=True, unreadable=True)))

    async def _tell(self, text: bytes) -> None:
        self._writer.write(LENGTH.pack(len(text)) + text)
        await self._writer.drain()


def _last(answer: Answer) -> bytes:
    return f"[{answer.model_dump_json()}]".encode()


def connect(wanted: Wanted) -> None:
    """To the cluster, or to one of this machine alone, which ends with us."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a node of ours: as the pool's workers
    quiet = {"log_to_driver": False, "logging_level": "warning", "namespace": "ml-trainer"}
    if wanted.address is not None:
        reach(wanted.address)
        ray.init(wanted.address, **quiet)
        return
    module = "ml_trainer_env.server.runtime.ray.resources"
    command = [sys.executable, "-P", "-m", module]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    resources = json.loads(found.stdout)
    quiet |= {"num_cpus": available(wanted.most), "include_dashboard": False}
    ray.init("local", resources=resources, **quiet)


def reach(address: str) -> None:
    """Raises `OSError` where there is no head: Ray itself would take minutes to say so."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHING).close()
    except OSError as error:
        raise OSError(f"no head answers at {address} ({error})") from None


def listen(control: Channel, hears: Future[Hears]) -> None:
    """To the server, until it is gone, and then end.

    In a thread, from the beginning: Ray may take minutes to find that there is no head.
    """
    with suppress(EOFError):
        while True:
            message = control.receive()
            hears.result()(message)
    end = threading.Timer(ENDING, os._exit, (0,))  # without a head Ray does not come to an end
    end.daemon = True
    end.start()
    with suppress(Exception):
        ray.shutdown()
    os._exit(0)


def fail(control: Channel, why: str) -> NoReturn:
    """Tell the server, and end."""
    with suppress(OSError):
        control.send(json.dumps({"error": why}).encode())
    os._exit(1)


def main(descriptor: str, wanted: str, trainer: type = Trainer) -> None:
    """Work until the other end closes."""
    control = Channel(socket.socket(fileno=int(descriptor)))
    hears: Future[Hears] = Future()
    threading.Thread(target=listen, args=(control, hears), daemon=True).start()
    try:
        told = Wanted(*json.loads(wanted))
        connect(told)
        asyncio.run(Bridge(control, told, trainer).run(hears))
    except Exception as error:
        fail(control, str(error).strip() or type(error).__name__)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
