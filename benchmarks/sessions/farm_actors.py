"""Ray actors that wait instead of training, and what starts them. For `farm.py` alone."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from typing import Any

import ray

from ml_trainer_env.benchmarks.sessions.waiting import ENGINE, STATE_BYTES, answer
from ml_trainer_env.server import runs
from ml_trainer_env.server.runs import Engine
from ml_trainer_env.server.runtime.orders import Order
from ml_trainer_env.server.runtime.ray import bridge
from ml_trainer_env.server.runtime.ray.actors import BESIDE, SPACING, Answers


class Waiter:
    """Answers orders as `Trainer` does, after the time that it would have taken."""

    def __init__(self, precision: str) -> None:
        self._seconds = float(os.environ["FARM_EPOCH_SECONDS"])
        self._stopped = 0

    def engine(self) -> bytes:
        return json.dumps({"engine": ENGINE}).encode()

    def load(self, name: str) -> None:
        """There is nothing to load."""

    def adopt(self, name: str, data: object) -> bool:
        return True

    def perform(self, number: int, text: bytes, state: bytes | None) -> Generator[Answers | bytes]:
        """An epoch after another, told as a worker would tell of them."""
        order = Order.model_validate_json(text)
        key = order.state or runs.begin(order.workload, order.seed, Engine(**ENGINE)).key
        ahead: list[dict[str, Any]] = []
        told = begun = time.monotonic()
        for done, plan in enumerate(order.plans, 1):
            time.sleep(max(0.0, begun + done * self._seconds - time.monotonic()))
            key = runs.next_key(key, plan)
            ahead.append(answer(key, self._seconds))
            now = time.monotonic()
            late = done >= order.at_least and now - begun >= order.seconds
            if late or self._stopped >= number:
                break
            if now - told >= SPACING and done < len(order.plans):
                yield Answers(json.dumps(ahead).encode(), False, None, False)
                told, ahead = now, []
        ahead[-1] |= {"last": True, "key": key, "size": STATE_BYTES}
        yield Answers(json.dumps(ahead).encode(), True, key, True)
        yield bytes(STATE_BYTES)

    @ray.method(concurrency_group=BESIDE)
    def stop(self, number: int) -> None:
        self._stopped = max(self._stopped, number)


if __name__ == "__main__":
    # By its name, so that every actor imports it instead of being sent it.
    from ml_trainer_env.benchmarks.sessions import farm_actors

    bridge.BEGINNING = 900.0  # two cores start what hundreds are to be
    bridge.main(sys.argv[1], sys.argv[2], farm_actors.Waiter)
