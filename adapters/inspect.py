"""Inspect AI: language models are evaluated on tasks and splits, in Inspect's own logs.

```
inspect eval ml_trainer_env/training --model openai/gpt-5-mini -T tasks=varied_mlp/eval -T seeds=1
inspect view
```

A sample is an episode with the environment's own tools. Its score is the final grade, with the
explanation that the grade gives; a sample that a limit cut off is graded as it stands. Needs the
extra `inspect`, and a server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from inspect_ai import Task, task
from inspect_ai.agent import AgentPrompt, AgentState, as_solver, react
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import ToolDef, ToolError, ToolParams
from inspect_ai.util import StoreModel
from openenv.core.env_server.mcp_types import Tool
from pydantic import Field

from ml_trainer_env.adapters import text
from ml_trainer_env.adapters.rollout import URL, Rollout, connecting
from ml_trainer_env.models import Grade
from ml_trainer_env.task_ids import is_cluster, named
from ml_trainer_env.variables import secret

MESSAGES = 120  # at most, of one sample: 50 calls with their answers, and some that are refused
CALL = "Call a tool; submit_model ends the episode."  # to a reply without one
T = TypeVar("T")

_THREADS = anyio.CapacityLimiter(1000)  # as many as there are samples at once


class Episode(StoreModel):
    """What the log keeps of an episode."""

    grade: Grade | None = None
    episode_return: float = 0.0
    refused_calls: int = 0
    statuses: list[dict[str, Any]] = Field(default_factory=list)  # after every call


@task
def training(tasks: str | list[str] = "varied_mlp/eval", seeds: int = 1, url: str = URL) -> Task:
    """Samples: every task that `tasks` names, with seeds 0 to `seeds` - 1.

    The token of the server is `ML_TRAINER_TOKEN`, for a log keeps what a task was given.
    `tasks`: ids, splits (`varied_mlp/eval`) and parts of them (`varied_mlp/eval/0-11`), with commas
    between them.
    """
    names = tasks.split(",") if isinstance(tasks, str) else tasks  # Inspect splits by itself
    ids = [task_id for name in names for task_id in named(name.strip())]
    samples = [
        Sample(
            input=f"Play {each}.",
            id=f"{each} seed {seed}",
            metadata={"task_id": each, "seed": seed},
        )
        for each in ids
        for seed in range(seeds)
    ]
    return Task(
        dataset=MemoryDataset(samples, name=",".join(names)),
        solver=play(url),
        scorer=final_score(),
        message_limit=MESSAGES,
    )


@solver
def play(url: str | None = URL) -> Solver:
    """The model plays the sample's episode with the environment's tools."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        kept = state.store_as(Episode)
        with Rollout(connecting(url, secret("ML_TRAINER_TOKEN"))) as rollout:
            opening = await _threaded(
                rollout.begin, state.metadata["task_id"], state.metadata["seed"]
            )
            state.user_prompt.text = text.opening(opening)
            agent = react(
                prompt=AgentPrompt(text.rules(opening), handoff_prompt=None, assistant_prompt=None),
                tools=[_tool(each, rollout, kept) for each in await _threaded(rollout.tools)],
                submit=False,
                on_continue=_going_on(rollout),
            )
            try:
                return await as_solver(agent)(state, generate)
            finally:  # also where a limit has ended the sample
                with anyio.CancelScope(shield=True):
                    kept.grade = await _threaded(rollout.finish)
                kept.episode_return = rollout.earned
                kept.refused_calls = rollout.errors

    return solve


@scorer(metrics=[mean(), stderr()])
def final_score() -> Scorer:
    """The grade of the episode."""

    async def score(state: TaskState, target: Target) -> Score:
        kept = state.store_as(Episode)
        grade = kept.grade
        if grade is None:
            raise RuntimeError("the episode was not graded")
        told = grade.model_dump(mode="json") | {"episode_return": kept.episode_return}
        return Score(
            value=grade.score,
            answer=_graded(grade),
            explanation=grade.explanation,
            metadata=told,
        )

    return score


def _graded(grade: Grade) -> str:
    if not is_cluster(grade.task_id):
        return f"epoch {grade.graded_epoch}, hidden test {grade.hidden_test_accuracy}"
    inputs = grade.components[0].inputs
    return f"{inputs['steps']:.0f} healthy steps, hidden-test loss {inputs['hidden_test_loss']:.4f}"


def _tool(tool: Tool, rollout: Rollout, kept: Episode) -> ToolDef:
    async def execute(**arguments: Any) -> str:
        if rollout.is_over:
            return text.OVER
        given = {name: value for name, value in arguments.items() if value is not None}
        answer = await _threaded(rollout.call, tool.name, given)
        if answer.error is not None:
            raise ToolError(answer.error.message)
        assert answer.status is not None
        kept.statuses = [*kept.statuses, answer.status.model_dump(mode="json")]
        return text.answer(answer)

    parameters = ToolParams.model_validate(tool.input_schema)
    return ToolDef(execute, tool.name, tool.description, parameters)


def _going_on(rollout: Rollout) -> Callable[[AgentState], Any]:
    async def going_on(state: AgentState) -> bool | str:
        if rollout.is_over:
            return False
        return True if state.output.message.tool_calls else CALL

    return going_on


async def _threaded(function: Callable[..., T], *arguments: Any) -> T:
    return await anyio.to_thread.run_sync(lambda: function(*arguments), limiter=_THREADS)
