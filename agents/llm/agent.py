"""A language model as an agent: one tool call a decision, and what went wrong is said to it.

A reply that cannot be carried out costs a decision and nothing else, so an episode takes a known
number of requests whatever the model answers.
"""

from __future__ import annotations

from functools import cached_property
from urllib.parse import urlsplit

from ml_trainer_env.agents.attempt import Attempt, Refused, Trial
from ml_trainer_env.agents.llm import prompt
from ml_trainer_env.agents.llm.answers import Reply
from ml_trainer_env.agents.llm.calls import ToolRequest
from ml_trainer_env.agents.llm.chat import Chat
from ml_trainer_env.agents.llm.settings import LLMSettings
from ml_trainer_env.agents.players import Player
from ml_trainer_env.agents.watching import train_on
from ml_trainer_env.task_ids import TaskId

SHOWN = 120  # characters of a model's own words that are shown to it again


def play(attempt: Attempt, chat: Chat, decisions: int) -> None:
    """A whole episode. Raises `EndpointError` when the model cannot be asked."""
    trial = attempt.begin()
    goal, tools = trial.status.message, attempt.tools()
    log: list[str] = []
    for decision in range(1, decisions + 1):
        request = prompt.messages(goal, trial.status, log, decision, decisions)
        useful = prompt.useful_tools(trial.status)
        reply = chat.ask(request, [tool for tool in tools if tool.name in useful])
        attempt.remark(str(reply))
        log.append(_carry_out(trial, reply))
        if trial.status.done:
            return
    if trial.status.cluster:
        train_on(trial)
    else:
        trial.call("submit_model")


def player(settings: LLMSettings, task_id: TaskId) -> Player:
    """Who plays with these settings: all of them that change what the model is asked."""
    return Player(
        agent="llm",
        model=settings.model,
        options={
            "endpoint": address(settings.base_url),
            "decisions": settings.decisions(task_id),
            "reasoning effort": settings.llm_reasoning_effort,
        },
    )


class LanguageModel:
    """The agent with the settings of this process, which are read once, when they are needed.

    Its methods raise what `LLMSettings.load` does.
    """

    def player(self, task_id: TaskId) -> Player:
        settings, _ = self._asked
        return player(settings, task_id)

    def play(self, attempt: Attempt) -> None:
        settings, chat = self._asked
        play(attempt, chat, settings.decisions(attempt.task_id))

    @cached_property
    def _asked(self) -> tuple[LLMSettings, Chat]:
        """One chat for all attempts, so that they share its cap."""
        settings = LLMSettings.load()
        return settings, Chat(settings)


def address(url: str) -> str:
    """Without what may be a secret: a name and password, or a query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _carry_out(trial: Trial, reply: Reply) -> str:
    """Do what the model asks, and tell what came of it."""
    if not reply.requests:
        return f"nothing done: {reply.hindrance}; call exactly one tool"
    first, *others = reply.requests
    told = _call(trial, first)
    if others:
        told += f"; your {len(others)} other call(s) were not carried out: one tool call a reply"
    return told


def _call(trial: Trial, request: ToolRequest) -> str:
    name = _cut(request.name)
    if not name:
        return "nothing done: the tool call has no name of a tool; call exactly one tool"
    if request.arguments is None:
        return f"nothing done: the arguments of {name} must be a JSON object: {request.fault}"
    shown = ", ".join(f"{name}={value}" for name, value in request.arguments.items())
    call = f"{name}({_cut(shown)})"
    try:
        return prompt.outcome(call, trial.call(request.name, **request.arguments))
    except Refused as error:
        return f"nothing done: {call}: {error}"


def _cut(text: str) -> str:
    return prompt.cut(text, SHOWN)
