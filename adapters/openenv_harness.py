"""OpenEnv's harness: a `ResourceSessionFactory`, for rollout functions and `openenv collect`.

```python
rollout_func = build_harness_rollout_func(
    session_factory=Sessions(),
    harness_adapter=MCPHarnessAdapter(),
    model_step_builder=...,
    limits=HarnessRunLimits(max_turns=24),
)
```

A task is an id (`varied_mlp/train/17`), a mapping with `task_id` and perhaps `seed`, or a
conversation whose last message is an id. The reward of a rollout is its return: `verify` submits
what was cut off, and tells it.
"""

# pyright: strict, reportMissingTypeStubs=false
# OpenEnv has its types in the code.

from __future__ import annotations

from typing import Any, cast

from openenv.core.env_server.mcp_types import Tool
from openenv.core.harness import ResourceSession, ResourceSessionFactory, ToolResult, VerifyResult

from ml_trainer_env.adapters import text
from ml_trainer_env.adapters.rollout import URL, Rollout, connecting
from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.task_ids import TaskId

Message = dict[str, Any]


class Episode(ResourceSession):
    """One episode; made by `Sessions`."""

    def __init__(self, rollout: Rollout, opening: TrainingStatus) -> None:
        self._rollout = rollout
        self._opening = opening
        self._tools = list(rollout.tools())

    def initial_messages(self) -> list[Message]:
        return [
            {"role": "system", "content": text.rules(self._opening)},
            {"role": "user", "content": text.opening(self._opening)},
        ]

    def list_tools(self) -> list[Tool]:
        return self._tools

    def call_tool(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """`data` is text for the model, `metadata` has the reward of the call and the status."""
        if self._rollout.is_over:
            return ToolResult(data=text.OVER, done=True, error=text.OVER)
        answer = self._rollout.call(name, arguments)
        told = text.answer(answer)
        if answer.status is None:
            return ToolResult(data=told, error=told)
        status = answer.status.model_dump(mode="json")
        # Not under the name `reward`: that of the last call would be taken for the rollout's.
        metadata = {"step_reward": answer.status.reward, "status": status}
        return ToolResult(data=told, done=answer.status.done, metadata=metadata)

    def verify(self, transcript: list[Message], final_state: Any | None = None) -> VerifyResult:
        grade = self._rollout.finish()
        metrics = {"score": grade.score, "errors": self._rollout.errors}
        return VerifyResult(
            env_reward=self._rollout.earned,
            done=True,
            metrics=metrics,
            artifacts={"grade": grade.model_dump(mode="json")},
        )

    def close(self) -> None:
        self._rollout.close()


class Sessions(ResourceSessionFactory[Episode]):
    """Episodes on the server at `url`, or in this process if that is None."""

    def __init__(self, url: str | None = URL, *, token: str | None = None) -> None:
        self._connect = connecting(url, token)

    def create(self, task: Any, seed: int | None = None, episode_id: str | None = None) -> Episode:
        """Raises ValueError for what is no task."""
        task_id, own_seed = _task(task)
        rollout = Rollout(self._connect)
        opening = rollout.begin(task_id, own_seed if seed is None else seed)
        return Episode(rollout, opening)


def _task(given: Any) -> tuple[TaskId, int]:
    if isinstance(given, list) and given:
        given = cast(list[Any], given)[-1]
    if isinstance(given, dict):
        row = cast(dict[str, Any], given)
        given, seed = row.get("task_id", row.get("content")), row.get("seed", 0)
    else:
        seed = 0
    if not isinstance(given, str) or not isinstance(seed, int):
        raise ValueError(f"not a task: {given!r}; an id, such as varied_mlp/train/17, is one")
    return given.strip(), seed
