"""Overhead of a tool call that trains nothing, and of reset: in process and over the WebSocket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from openenv.core.env_server.mcp_types import CallToolAction

from ml_trainer_env import MLTrainerEnv
from ml_trainer_env.benchmarks.timing import Spread, seconds_of
from ml_trainer_env.local_server import LOGS, local_server
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.wire import ToolObservation

HISTORY = 10  # epochs behind the measured calls: a status with its histories full
CALLS = 40  # of each kind; an episode has no more than 50
RESETS = 20  # of each task
WARM_UP = 3  # not counted, of each kind
LOG = LOGS / "bench-server.log"


class Door(NamedTuple):
    """One way into the environment."""

    reset: Callable[..., object]  # (task_id=, seed=)
    call: Callable[..., object]  # (tool name, **arguments); raises when the tool does not do it


def in_process(task_ids: Sequence[str]) -> dict[str, Spread]:
    env = MLTrainerEnvironment()

    def call(name: str, **arguments: Any) -> None:
        observation = env.step(CallToolAction(tool_name=name, arguments=arguments))
        if not isinstance(observation, ToolObservation) or observation.status is None:
            raise RuntimeError(f"{name}: {observation!r}")

    try:
        return measure(Door(env.reset, call), task_ids)
    finally:
        env.close()


def over_websocket(task_ids: Sequence[str]) -> dict[str, Spread]:
    with local_server(LOG) as url, MLTrainerEnv(base_url=url) as env:
        return measure(Door(env.reset, env.call_tool), task_ids)


def measure(door: Door, task_ids: Sequence[str]) -> dict[str, Spread]:
    """Spreads by what was called: the two tools, and `reset TASK` for every task."""
    for task_id in task_ids:  # afterwards torch and the data are loaded
        door.reset(task_id=task_id, seed=0)
        door.call("configure_training")
        door.call("run_epochs", num_epochs=1)
    found = {f"reset {task_id}": _resets(door, task_id) for task_id in task_ids}
    # The task makes no difference to a call that trains nothing: the one with the shortest epochs.
    door.reset(task_id="easy_mnist", seed=0)
    door.call("configure_training")
    door.call("run_epochs", num_epochs=HISTORY)
    found["get_training_status"] = _spread(lambda _: door.call("get_training_status"), CALLS)
    rates = (0.001, 0.002)
    found["adjust_learning_rate"] = _spread(
        lambda i: door.call("adjust_learning_rate", new_lr=rates[i % 2]), CALLS
    )
    return found


def _resets(door: Door, task_id: str) -> Spread:
    return _spread(lambda seed: door.reset(task_id=task_id, seed=seed), RESETS)


def _spread(call: Callable[[int], object], count: int) -> Spread:
    samples = [seconds_of(lambda i=i: call(i)) for i in range(WARM_UP + count)]
    return Spread.of(samples[WARM_UP:])
