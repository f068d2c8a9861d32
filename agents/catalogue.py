"""Every agent by its name. An agent's module is loaded when the agent is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ml_trainer_env.agents.players import Player
from ml_trainer_env.task_ids import TaskId, instance_id, is_cluster

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
    "panic": ("operators", "panic"),
    "watchdog": ("watchdogs", "watchdog"),
    "careful": ("watchdogs", "careful"),
    "llm": ("llm.agent", "LanguageModel"),
}
OPERATORS: dict[str, tuple[str, str]] = {  # who plays a cluster under a name that others have
    "nothing": ("operators", "nothing"),
    "random": ("operators", "chance"),
    "oracle": ("operators", "oracle"),
}
OF_CLUSTERS = (*OPERATORS, "panic", "watchdog", "careful", "llm")
OF_CLUSTERS_ALONE = ("panic", "watchdog", "careful")


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
    found = _loaded(name, *AGENTS[name])
    if isinstance(found, type):  # it has settings, and they decide how it plays
        configured = found()
        return Agent(configured.play, configured.player)
    of_clusters = _loaded(name, *OPERATORS[name]) if name in OPERATORS else found

    def play(attempt: Attempt) -> None:
        (of_clusters if is_cluster(attempt.task_id) else found)(attempt)

    return Agent(play, lambda task_id: _player(name, task_id))


def _loaded(name: str, module: str, attribute: str) -> Any:
    try:
        return getattr(import_module(f"ml_trainer_env.agents.{module}"), attribute)
    except ModuleNotFoundError as error:
        raise AgentUnavailable(
            f"{name} needs {error.name}: install ml-trainer-env with its extra `evaluate`"
        ) from error


def _player(name: str, task_id: TaskId) -> Player:
    """Raises `AgentUnavailable` for one that does not know such tasks."""
    if is_cluster(task_id) and name not in OF_CLUSTERS:
        raise AgentUnavailable(f"{name} runs no cluster; those who do are {', '.join(OF_CLUSTERS)}")
    if not is_cluster(task_id) and name in OF_CLUSTERS_ALONE:
        raise AgentUnavailable(f"{name} runs clusters alone, and {task_id} is none")
    if name == "reference" and instance_id(task_id):
        raise AgentUnavailable(f"reference has no recipe for {task_id}: oracle has")
    return Player(agent=name)
