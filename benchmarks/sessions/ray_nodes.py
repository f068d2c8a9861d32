"""Ray clusters of several nodes on this machine, each with processes of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray.cluster_utils import Cluster

from ml_trainer_env.server import trainer
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.ray.farm import Farm
from ml_trainer_env.server.runtime.ray.machines import MODULE
from ml_trainer_env.server.runtime.ray.nodes import Wanted, label

STORE = 100 * 2**20  # bytes of objects on a node: enough where few states are made
PATIENCE = 90.0  # seconds: Ray takes its time to see that a node is gone
NICENESS = "RAY_worker_niceness"
TITLE = b"ray::Trainer"


def ours() -> str:
    """The resource that names the engine of this machine."""
    return label(trainer.engine("fp32"))


class Nodes:
    """A head that does not train, and nodes that do, with the engine of this machine or another."""

    def __init__(
        self, port: int | None = None, engine: str | None = None, store: int = STORE
    ) -> None:
        self._engine = engine or ours()
        self._store = store
        self.training: list[Any] = []  # nodes, the eldest first
        os.environ.update({NICENESS: "0"})  # the machine has others to serve
        head: dict[str, Any] = {"num_cpus": 0, "object_store_memory": STORE}
        head |= {"include_dashboard": False}
        if port is not None:
            head["gcs_server_port"] = port
        self.cluster = Cluster(initialize_head=True, head_node_args=head)

    @property
    def address(self) -> str:
        """Host and port of the head."""
        return str(self.cluster.address)

    def add(
        self, cores: int = 1, named: str | None = None, environment: Mapping[str, str] | None = None
    ) -> Any:
        """A node that trains; `named`: the engine it says it has."""
        node = self.cluster.add_node(
            num_cpus=cores,
            resources={named or self._engine: cores},
            object_store_memory=self._store,
            env_vars=dict(environment or {}),
        )
        self.training.append(node)
        return node

    def kill(self, node: Any) -> None:
        """All its processes at once, by SIGKILL."""
        actors = actors_of(node)
        self.training.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        for actor in actors:  # they would end by themselves, but not at once
            with suppress(ProcessLookupError):
                os.kill(actor, signal.SIGKILL)

    def stored(self) -> int:
        """Bytes of objects, on all nodes together; a copy counts as another."""
        told = get_memory_info_reply(get_state_from_address(self.address))
        return int(told.store_stats.object_store_bytes_used)

    def close(self) -> None:
        """Everything; once more does nothing."""
        if self.cluster.head_node is not None:
            self.cluster.shutdown()


def actors_of(node: Any) -> list[int]:
    """The processes that train there."""
    raylet = node.all_processes["raylet"][0].process.pid
    return [process for process in _children(raylet) if _title(process).startswith(TITLE)]


def store_for(budget: int, nodes: int) -> int:
    """Bytes of each node's store, where a server may keep `budget`: half as much again as its equal
    share (docs/guide/many-machines.md). Beyond it Ray writes to disk.
    """
    return 3 * budget // (2 * nodes)


@contextmanager
def farm(
    address: str | None, cores: int | None = None, budget: int = 10**9, bridge: str = MODULE
) -> Generator[Farm]:
    """What trains on that cluster."""
    with closing(Farm(Wanted("fp32", address, cores), Cores(1, 1), budget, bridge)) as farm:
        yield farm


@contextmanager
def nodes(
    *cores: int, port: int | None = None, engine: str | None = None, store: int = STORE
) -> Generator[Nodes]:
    """A cluster with a node of so many cores each, which has a store of so many bytes."""
    with closing(Nodes(port, engine, store)) as made:
        for each in cores:
            made.add(each)
        yield made


def _children(parent: int) -> list[int]:
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == parent:
                found.append(int(folder.name))
    return found


def _title(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
