"""What the standard MCP door lets a client read: the rules, the tasks, and a prompt to begin with.

Resources are `ml-trainer://rules` (Markdown), `ml-trainer://tasks` and `ml-trainer://tasks/TASK_ID`
(JSON). Nothing is written here: the text is made from what enforces it (`rules.py`).
"""

from __future__ import annotations

import json
from typing import Any

from fastmcp import FastMCP
from fastmcp.exceptions import PromptError, ResourceError
from fastmcp.prompts import Prompt, PromptArgument
from pydantic import PrivateAttr

from ml_trainer_env.server.doors.mcp import rules
from ml_trainer_env.server.doors.mcp.visitor import BEGIN, BeginEpisode, Terms
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.validation import ActionError, shown, validate
from ml_trainer_env.task_ids import EXAMPLE

PROMPT = "play"


def add_to(server: FastMCP, terms: Terms) -> None:
    """Add the resources and the prompt."""

    @server.resource("ml-trainer://rules", name="rules", mime_type="text/markdown")
    def _rules() -> str:
        """What holds for every task: tools, reward, final score."""
        return rules.rules(BEGIN)

    @server.resource("ml-trainer://tasks", name="tasks", mime_type="application/json")
    def _tasks() -> str:
        """The classic tasks with their goals; instances of the families are read one by one."""
        return json.dumps([task.card for task in TASKS.values()])

    @server.resource("ml-trainer://tasks/{task_id*}", name="task", mime_type="application/json")
    def _task(task_id: str) -> str:
        """One task, also an instance such as varied_mlp/eval/7."""
        try:
            return json.dumps(task_of(task_id).card)
        except KeyError:
            known = f"{', '.join(TASKS)}, and instances such as {EXAMPLE}"
            raise ResourceError(
                f"no task is named {shown(task_id)}; the tasks are {known}"
            ) from None

    server.add_prompt(PlayPrompt.under(terms))


class PlayPrompt(Prompt):
    """Takes what begin_episode takes, checked in the same way."""

    _arguments: type[BeginEpisode] = PrivateAttr()

    @classmethod
    def under(cls, terms: Terms) -> PlayPrompt:
        prompt = cls(
            name=PROMPT,
            description="Play an episode of a task.",
            arguments=[
                PromptArgument(name=name, description=field.description, required=False)
                for name, field in terms.arguments.model_fields.items()
            ],
        )
        prompt._arguments = terms.arguments
        return prompt

    async def render(self, arguments: dict[str, Any] | None = None) -> str:
        given = {name: _number(value) for name, value in (arguments or {}).items()}
        try:
            chosen = validate(self._arguments, given, subject=PROMPT)
        except ActionError as error:
            raise PromptError(str(error)) from None
        return rules.opening_move(BEGIN, chosen.task_id, chosen.seed)


def _number(value: Any) -> Any:
    """MCP's prompts are given nothing but strings: one that JSON reads as a number is meant so."""
    try:
        read = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return value
    return read if type(read) in (int, float) else value
