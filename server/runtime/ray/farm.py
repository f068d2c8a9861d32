"""An executor on many machines: the pool with actors for its workers, on the cores that come."""

# pyright: strict

from __future__ import annotations

import logging
import socket
import threading
from contextlib import AbstractContextManager

from ml_trainer_env.models import SERVER_BUSY
from ml_trainer_env.server.runs import Engine, Precision
from ml_trainer_env.server.runtime.asking import QueueFull
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.orders import Order
from ml_trainer_env.server.runtime.pool import LoadedData, Pool
from ml_trainer_env.server.runtime.ray.kept import KeptElsewhere
from ml_trainer_env.server.runtime.ray.machines import MODULE, Machines, RemoteWorker
from ml_trainer_env.server.runtime.ray.nodes import Wanted
from ml_trainer_env.server.runtime.runner import Answers, SliceRunner

log = logging.getLogger("uvicorn.error")  # uvicorn's own: where an operator looks

PATIENCE = 60.0  # seconds that the first core gets to come
SLICE = 0.5  # seconds of a turn: an order costs ten milliseconds more than to a worker of the pool


class Farm:
    """Trains on the machines of a Ray cluster that have the wanted engine.

    Needs no closing: actors and all else end with this process.
    """

    def __init__(
        self,
        wanted: Wanted,
        cores: Cores,
        budget: int,  # bytes of states
        bridge: str = MODULE,
    ) -> None:
        """`bridge`: the module that speaks to Ray; another's actors do something else."""
        cores.resize(0, 1)
        cores.slice = SLICE
        self.cores = cores
        self._first = threading.Event()
        self.pool = Pool(0, wanted.precision, load=_found_by_whoever_trains, launch=self._launch)
        self.states = KeptElsewhere(budget, lambda keys: self.machines.forget(keys))
        self.runner = SliceRunner(self, cores, self.states)
        self.machines = Machines(
            wanted,
            changed=self._changed,
            lost=self.states.close,
            bridge=bridge,
        )

    def engine(self) -> Engine:
        """That of the nodes. Raises `QueueFull` while there is none, and `WorkerFailed`."""
        if not self._first.wait(PATIENCE):
            log.error(
                'Ray: no core came in %g s: %s; ray start --resources "$(ml-trainer resources)"',
                PATIENCE,
                self.machines.says,
            )
            raise QueueFull(f"{SERVER_BUSY}: no machine of its cluster trains yet; try again later")
        return self.pool.engine()

    def perform(self, order: Order, state: int | None) -> AbstractContextManager[Answers]:
        return self.pool.perform(order, state)

    def close(self) -> None:
        """End all that was started."""
        self.pool.close()
        self.machines.close()

    def _launch(self, end: socket.socket, precision: Precision) -> RemoteWorker:
        return self.machines.launch(end, precision)

    def _changed(self, cores: int, side_by_side: int) -> None:
        self.cores.resize(cores, side_by_side)
        self.pool.resize(cores)
        if cores:
            self._first.set()
            self.pool.prepare()


def _found_by_whoever_trains(name: str) -> LoadedData | None:
    """Files of this machine are of no use to others: nodes share data among their own actors."""
    return None
