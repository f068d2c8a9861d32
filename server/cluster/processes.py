"""Every host a process of its own, over torch.distributed: the check that nothing here is played.

The gradients really travel (gloo's broadcasts, added in the order of the micro-shards: the order of
a backend's own all-reduce is not ours), a lost host is really killed, a slow one really sleeps, a
collective that waits for a dead one really times out, and checkpoints are files, of which a damaged
one really ends in the middle. What comes of it equals what `Together` computes, to the bit.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ml_trainer_env.server.cluster.networks import NETWORKS, Rows
from ml_trainer_env.server.cluster.ranks import (
    Contribution,
    Lost,
    Memory,
    Part,
    Update,
    copied,
    in_order,
)
from ml_trainer_env.server.cluster.state import Checkpoint, Model
from ml_trainer_env.server.engine import modes
from ml_trainer_env.server.worlds import NetworkName

LATE = 3.0  # real seconds after which a collective is given up
SLEEP = 0.005  # real seconds that a host loses for each virtual one that it is slower
PARTS = ("weights", "first", "second")  # of a checkpoint: the moments come after the weights


class _Host(NamedTuple):
    process: BaseProcess
    ask: Connection


class Processes:
    """`Ranks` that are processes. `folder` is their disk. Close it, or use it as a context."""

    def __init__(self, network: NetworkName, folder: Path) -> None:
        self._network: NetworkName = network
        self._folder = folder
        self._hosts: dict[int, _Host] = {}
        self._group: list[int] = []
        self._groups = 0
        self._rows: list[Tensor] = []
        self._away: list[int] = []  # apart
        self._nobodys: Memory | None = None

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all of them."""
        for host in list(self._hosts):
            self.lose(host)

    def pids(self) -> dict[int, int]:
        """Of the processes of the hosts."""
        return {host: each.process.pid or 0 for host, each in self._hosts.items()}

    def begin(self, hosts: Sequence[int], model: Model, apart: Mapping[int, Tensor]) -> None:
        for host in set(self._hosts) - set(hosts):
            self.lose(host)
        for host in hosts:
            if host not in self._hosts:
                self._hosts[host] = self._new(host)
        self._away = [host for host in hosts if host in apart]
        self._nobodys = None if self._in_step else self._kept(model)
        for host in hosts:
            weights = apart.get(host, model.weights)
            arrays = [part.numpy() for part in (weights, *model.moments)]
            self._ask(host, "hold", arrays, model.updates, host in apart)

    def contribute(self, parts: Sequence[Part]) -> list[Contribution]:
        hosts = [part.host for part in parts]
        counts = [len(part.shards) for part in parts]
        self._meet(hosts)
        order = [self._group.index(host) for host in hosts]
        for part in parts:
            rows: Any = [each.numpy() for each in part.rows]
            self._tell(part.host, "step", part._replace(rows=rows), counts, order)
        answers = [self._hear(host) for host in hosts]
        found = [Contribution(*map(torch.from_numpy, answer)) for answer in answers]
        self._rows = in_order(found)
        return found

    def update(self, made: Update) -> float:
        for host in self._group:
            self._tell(host, "update", made)
        first, *others = [self._hear(host) for host in self._group]
        assert all(math.isnan(norm) or norm == first for norm in others), "hosts disagree"
        if self._nobodys:
            self._nobodys.update(self._rows, made)
        return first

    def part(self, host: int) -> None:
        if host in self._away:
            return
        model = self.model()
        self._away.append(host)
        self._ask(host, "leave")
        if not self._in_step and not self._nobodys:
            self._nobodys = self._kept(model)

    def lose(self, host: int) -> None:
        lost = self._hosts.pop(host, None)
        if lost:
            lost.process.kill()
            lost.process.join()
            lost.ask.close()
        self._group = []

    def flip(self, place: int, bit: int) -> None:
        for host in self._in_step:
            self._ask(host, "flip", place, bit)
        if self._nobodys:
            self._nobodys.flip(place, bit)

    def model(self) -> Model:
        if self._nobodys:
            return copied(self._nobodys.model)
        (weights, *moments), updates = self._ask(self._in_step[0], "held")
        return Model(
            torch.from_numpy(weights), tuple(torch.from_numpy(m) for m in moments), updates
        )

    def apart(self) -> dict[int, Tensor]:
        return {host: torch.from_numpy(self._ask(host, "held")[0][0]) for host in self._away}

    def write(self, checkpoint: Checkpoint) -> None:
        model = checkpoint.model
        for name, part in zip(PARTS, (model.weights, *model.moments), strict=True):
            file = self._file(checkpoint, name)
            part.numpy().tofile(file)
            if checkpoint.damaged:
                os.truncate(file, len(part) // 2 * part.itemsize)

    def read(self, checkpoint: Checkpoint) -> Model:
        if not self._file(checkpoint, PARTS[0]).exists():  # it was written before these processes
            self.write(checkpoint)
        parts: list[Tensor] = []
        for name in PARTS:
            found = np.fromfile(self._file(checkpoint, name), np.float32)
            whole = torch.zeros_like(checkpoint.model.weights)
            whole[: len(found)] = torch.from_numpy(found)
            parts.append(whole)
        return Model(parts[0], tuple(parts[1:]), checkpoint.model.updates)

    # Inside --------------------------------------------------------------------------------------

    @property
    def _in_step(self) -> list[int]:
        """Hosts."""
        return [host for host in self._hosts if host not in self._away]

    def _kept(self, model: Model) -> Memory:
        """What no host has, since all miss the updates or are dead, is kept by the launcher: it is
        what a broadcast or a checkpoint would have.
        """
        return Memory(NETWORKS[self._network], model)

    def _file(self, checkpoint: Checkpoint, part: str) -> Path:
        return self._folder / f"step-{checkpoint.step}.{part}"

    def _new(self, host: int) -> _Host:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(
            target=_serve, args=(theirs, self._network), name=f"host {host}", daemon=True
        )
        process.start()
        theirs.close()
        return _Host(process, ours)

    def _meet(self, wanted: list[int]) -> None:
        """Form a group of these. Raises `Lost` for the first that does not come."""
        hosts = sorted(wanted)
        if hosts == self._group:
            return
        self._groups += 1
        place = str(self._folder.absolute() / f"group-{self._groups}")
        there = [host for host in hosts if host in self._hosts]
        for host in there:
            self._tell(host, "meet", place, hosts.index(host), len(hosts))
        met = [self._hear(host) for host in there]
        if missing := [host for host in wanted if host not in there]:
            assert not any(met), "a group met without one of its hosts"
            raise Lost(missing[0])
        if not all(met):
            raise ConnectionError(f"of hosts {hosts} some did not meet within {LATE:g} s")
        self._group = hosts

    def _ask(self, host: int, what: str, *arguments: Any) -> Any:
        self._tell(host, what, *arguments)
        return self._hear(host)

    def _tell(self, host: int, what: str, *arguments: Any) -> None:
        self._hosts[host].ask.send((what, arguments))

    def _hear(self, host: int) -> Any:
        answer = self._hosts[host].ask.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Serving:
    """What runs in a host's process."""

    def __init__(self, network: NetworkName) -> None:
        self._network = NETWORKS[network]
        self._away = False
        self._group: Any = None  # of gloo; its collectives are in no stub

    def hold(self, arrays: list[np.ndarray], updates: int, away: bool) -> None:
        weights, *moments = map(torch.from_numpy, arrays)
        self._memory = Memory(self._network, Model(weights, tuple(moments), updates))
        self._away = away

    def held(self) -> tuple[list[np.ndarray], int]:
        model = self._memory.model
        return [part.numpy() for part in (model.weights, *model.moments)], model.updates

    def meet(self, place: str, number: int, count: int) -> bool:
        """Not torch's default group: after one that failed, its name differs between hosts."""
        self._group, self._number = None, number  # the old one is closed first
        late = timedelta(seconds=LATE)
        try:
            store = dist.FileStore(place, count)  # pyright: ignore[reportPrivateImportUsage]
            store.set_timeout(late)
            self._group = dist.ProcessGroupGloo(store, number, count, late)
        except (dist.DistError, RuntimeError):
            return False
        return True

    def step(self, part: Part, counts: list[int], order: list[int]) -> tuple[np.ndarray, ...]:
        """Compute, and exchange the gradients: those of each part come from its host."""
        rows = Rows(*map(torch.from_numpy, part.rows))
        assert self._group is not None, "hosts meet before they compute"
        own = self._memory.contribution(part._replace(rows=rows))
        time.sleep(max(0.0, SLEEP * (part.slowdown - 1)))
        width = own.gradients.shape[1]
        self._rows: list[Tensor] = []
        for count, source in zip(counts, order, strict=True):
            found = own.gradients if source == self._number else torch.empty(count, width)
            self._group.broadcast(found, source).wait()
            self._rows += found.unbind()
        return own.losses.numpy(), own.gradients.numpy()

    def update(self, made: Update) -> float:
        if not self._away:
            return self._memory.update(self._rows, made)
        return Memory(self._network, self._memory.model).update(self._rows, made)

    def leave(self) -> None:
        self._away = True

    def flip(self, place: int, bit: int) -> None:
        self._memory.flip(place, bit)


def _serve(ask: Connection, network: NetworkName) -> None:
    """Answer, until nobody asks."""
    serving = _Serving(network)
    with modes.of_the_engine(), modes.of_a_computation("fp32"):
        while True:
            try:
                what, arguments = ask.recv()
            except EOFError:
                return
            try:
                ask.send(getattr(serving, what)(*arguments))
            except Exception as error:
                ask.send(error)
