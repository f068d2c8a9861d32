"""Every agent by its name. An agent's module is loaded when the agent is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from ml_trainer_env.agents.players import Player
from ml_trainer_env.task_ids import TaskId, instance_id

if TYPE_CHECKING:  # importing it for real would load OpenEnv
    from ml_trainer_env.agents.attempt import Attempt

AGENTS: dict[str, tuple[str, str]] = {  # module, and function or class
    "nothing": ("policies", "nothing"),
    "random": ("policies", "chance"),
    "naive": ("policies", "naive"),
    "constant": ("pool", "constant"),
    "expert": ("expert", "expert"),
    "reference": ("policies", "reference"),
    "oracle": ("pool", "oracle"),
    "optuna": ("search", "tpe"),
    "halving": ("search", "halving"),
    "pbt": ("search", "population"),
    "llm": ("llm.agent", "LanguageModel"),
}


class AgentUnavailable(ValueError):
    """There is no such agent, or not here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Agent:
    """One of them. Called with an attempt, it plays it to its submission."""

    play: Callable[[Attempt], None]
    player: Callable[[TaskId], Player]  # who it is on a task; raises ValueError for bad settings

    def __call__(self, attempt: Attempt) -> None:
        self.play(attempt)


def find(name: str) -> Agent:
    """Raises `AgentUnavailable`."""
    if name not in AGENTS:
        raise AgentUnavailable(f"no agent is named {name}; the agents are {', '.join(AGENTS)}")
    module, attribute = AGENTS[name]
    try:
        found = getattr(import_module(f"ml_trainer_env.agents.{module}"), attribute)
    except ModuleNotFoundError as error:
        raise AgentUnavailable(
            f"{name} needs {error.name}: install ml-trainer-env with its extra `evaluate`"
        ) from error
    if isinstance(found, type):  # it has settings, and they decide how it plays
        configured = found()
        return Agent(configured.play, configured.player)
    return Agent(found, lambda task_id: _player(name, task_id))


def _player(name: str, task_id: TaskId) -> Player:
    """Raises `AgentUnavailable` for the one that knows the classic tasks alone."""
    if name == "reference" and instance_id(task_id):
        raise AgentUnavailable(f"reference has no recipe for {task_id}: oracle has")
    return Player(agent=name)
