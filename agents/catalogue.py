"""Every agent by its name. An agent's module is loaded when the agent is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it for real would load OpenEnv
    from ml_trainer_env.agents.attempt import Attempt

Agent = Callable[["Attempt"], None]  # plays an attempt to its submission

AGENTS: dict[str, tuple[str, str]] = {  # module and function
    "nothing": ("policies", "nothing"),
    "random": ("policies", "chance"),
    "naive": ("policies", "naive"),
    "expert": ("expert", "expert"),
    "reference": ("policies", "reference"),
    "optuna": ("search", "tpe"),
    "halving": ("search", "halving"),
    "pbt": ("search", "population"),
    "llm": ("llm.agent", "from_environment"),
}


class AgentUnavailable(ValueError):
    """There is no such agent, or not here; the message says what to do."""


def find(name: str) -> Agent:
    """Raises `AgentUnavailable`."""
    if name not in AGENTS:
        raise AgentUnavailable(f"no agent is named {name}; the agents are {', '.join(AGENTS)}")
    module, function = AGENTS[name]
    try:
        return getattr(import_module(f"ml_trainer_env.agents.{module}"), function)
    except ModuleNotFoundError as error:
        raise AgentUnavailable(
            f"{name} needs {error.name}: install ml-trainer-env with its extra `evaluate`"
        ) from error


def check(name: str) -> None:
    """Before anything is begun. Raises `AgentUnavailable`, and `SettingsError` for its variables.

    An agent with variables has a function `ready` beside it.
    """
    getattr(import_module(find(name).__module__), "ready", lambda: None)()
