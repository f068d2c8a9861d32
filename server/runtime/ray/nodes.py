"""Which nodes of a Ray cluster train for us, and how many cores of each are free.

A node names its engine by a custom resource, one unit a core: `ml-trainer resources` prints it for
`ray start`. Only nodes of one engine are used, so mixed machines never mix bits. An actor that
finds another engine than its node named closes that node.
"""

# pyright: strict

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ml_trainer_env.server.runs import Engine, Precision

PREFIX = "ml-trainer-engine-"
CLAIM = 1 / 16  # of a core's unit, by each actor: so many servers may share the cluster
SUSPENDED = 5.0  # seconds that a node is left alone after an actor was lost there


class Wanted(NamedTuple):
    """What a server wants of a cluster. Plain values, for JSON."""

    precision: Precision
    address: str | None = None  # of the head, host:port; None: a cluster of this machine alone
    most: int | None = None  # cores; None: all
    engine: str | None = None  # its label; None: the one that most cores have


def label(engine: Engine) -> str:
    """The resource that names `engine`."""
    identity = f"{engine.fingerprint}|{engine.cluster}"
    return PREFIX + hashlib.sha256(identity.encode()).hexdigest()[:16]


@dataclass(slots=True)
class Node:
    """A machine of the cluster that names an engine."""

    id: str
    label: str
    cores: int
    busy: int = 0
    until: float = 0.0  # it is left alone, by the loop's clock

    def free(self, now: float) -> int:
        return self.cores - self.busy if now >= self.until else 0


@dataclass(slots=True)
class Nodes:
    """Those of the engine that is wanted; of the one that most cores have when any are seen.

    For one event loop.
    """

    most: int | None = None  # cores that may be used in all; None: every one
    label: str | None = None  # of the engine; stays, once it is known
    here: dict[str, Node] = field(default_factory=dict[str, Node])
    others: int = 0  # nodes that name another engine, or none
    foreign: tuple[str, ...] = ()  # the labels of other engines
    closed: set[str] = field(default_factory=set[str])  # they have not the engine that they name
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def cores(self) -> int:
        """That may be used."""
        cores = sum(node.cores for node in self.here.values())
        return cores if self.most is None else min(cores, self.most)

    @property
    def narrowest(self) -> int:
        """Cores of the node with the fewest: what a training can have side by side anywhere."""
        return min((node.cores for node in self.here.values()), default=0)

    async def see(self, nodes: Sequence[Mapping[str, Any]]) -> set[str]:
        """Take in what `ray.nodes()` says; the ids of those that are gone."""
        named = {node.id: node for each in nodes if (node := _named(each)) is not None}
        if self.label is None and named:
            cores = Counter[str]()
            for node in named.values():
                cores[node.label] += node.cores
            self.label = max(sorted(cores), key=cores.__getitem__)
        usable = {
            id: node
            for id, node in named.items()
            if node.label == self.label and id not in self.closed
        }
        self.others = sum(bool(each["Alive"]) for each in nodes) - len(usable)
        self.foreign = tuple(sorted({node.label for node in named.values()} - {self.label}))
        gone = self.here.keys() - usable.keys()
        async with self._changed:
            self.here = {id: self.here.get(id, node) for id, node in usable.items()}
            self._changed.notify_all()
        return gone

    async def take(self) -> Node:
        """A core, of the node that has the most to spare; waits for one."""
        now = asyncio.get_running_loop().time
        async with self._changed:
            while True:
                node = max(self.here.values(), key=lambda node: node.free(now()), default=None)
                if node is not None and node.free(now()) > 0:
                    node.busy += 1
                    return node
                await self._changed.wait()

    async def give_back(self, node: Node, *, lost: bool) -> None:
        """The core is free again; `lost`: an actor ended on its own, its node may have, too."""
        async with self._changed:
            node.busy -= 1
            if lost:
                node.until = asyncio.get_running_loop().time() + SUSPENDED
            self._changed.notify_all()

    def close(self, node: Node) -> None:
        """It is never used again."""
        self.closed.add(node.id)
        self.here.pop(node.id, None)


def _named(node: Mapping[str, Any]) -> Node | None:
    """A node that is alive and names an engine."""
    for name, amount in node["Resources"].items():
        if node["Alive"] and name.startswith(PREFIX) and amount >= 1:
            return Node(node["NodeID"], name, int(amount))
    return None
