"""The client: `MLTrainerEnv`, over a WebSocket, in synchronous and asynchronous code.

```python
with MLTrainerEnv(base_url="http://localhost:8000") as env:  # or: async with, and await each call
    env.reset(task_id="easy_mnist", seed=0)
    env.call_tool("configure_training", optimizer="adam", learning_rate=0.001)
    status = env.call_tool("run_epochs", num_epochs=10)  # a TrainingStatus
    status.val_accuracy, status.reward, status.done
```

Importing it loads neither torch nor the server.
"""

# OpenEnv leaves type parameters open:
# pyright: reportUnknownMemberType=false

# pyright: reportMissingTypeStubs=false
# OpenEnv has its types in the code.

from __future__ import annotations

from typing import Any, Self, cast

from openenv.core.client_types import StepResult
from openenv.core.env_server.mcp_types import (
    CallToolAction,
    ListToolsAction,
    ListToolsObservation,
    Tool,
)
from openenv.core.env_server.types import Observation
from openenv.core.mcp_client import MCPToolClient
from openenv.core.sync_client import SyncEnvClient
from websockets.exceptions import InvalidProxy

from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.surroundings import PROXY
from ml_trainer_env.variables import SettingsError, is_sendable, named, one_line
from ml_trainer_env.wire import EpisodeState, StatusObservation, ToolObservation

MESSAGE_TIMEOUT_S = 900.0  # 20 epochs of the hard task on a slow and busy machine

SyncClient = SyncEnvClient[Any, Observation, EpisodeState]


class ToolCallError(RuntimeError):
    """The tool did not do what was asked; its message says what it would do. Nothing changed."""


class MLTrainerEnv(MCPToolClient):
    """One session on a server.

    Everything goes through OpenEnv's step, so rewards and the end of the episode are OpenEnv's own;
    its stock client calls tools past it. `reset` and `step` answer a `StepResult` with a typed
    observation (`wire.py`); `step` returns a tool's error as data, `call_tool` raises it.
    """

    def __init__(
        self, base_url: str, *, message_timeout_s: float = MESSAGE_TIMEOUT_S, **options: Any
    ) -> None:
        """`message_timeout_s`: seconds to wait for an answer; `options`: those of MCPToolClient.

        Raises ValueError for headers that cannot be sent.
        """
        headers: dict[str, str] = options.get("headers") or {}
        for name, value in headers.items():
            if not is_sendable(value):  # the value may be a secret
                raise ValueError(f"headers: that of {name!r} is not printable ASCII")
        super().__init__(base_url, message_timeout_s=message_timeout_s, **options)
        self.use_production_mode = False

    async def list_tools(self, use_cache: bool = True) -> list[Tool]:
        """The tools with their descriptions and JSON schemas."""
        if self._tools_cache is None or not use_cache:
            listed = (await self._step_async(ListToolsAction())).observation
            if not isinstance(listed, ListToolsObservation):
                raise TypeError(f"not a list of tools: {listed!r}")
            self._tools_cache = listed.tools
        return self._tools_cache

    async def call_tool(self, name: str, **arguments: Any) -> TrainingStatus:
        """What the agent sees after the call, its reward included. Raises `ToolCallError`."""
        result = await self._step_async(CallToolAction(tool_name=name, arguments=arguments))
        observation = result.observation
        if not isinstance(observation, ToolObservation):
            raise TypeError(f"not the answer to a tool call: {observation!r}")
        if observation.error is not None:
            raise ToolCallError(observation.error.message)
        if observation.status is None:
            raise TypeError("the tool answered neither a result nor an error")
        return observation.status

    async def fork(self, episode_id: str, new_id: str | None = None) -> StepResult[Observation]:
        """Go on from where another open episode of the server stands after its last action.

        Both then go their own ways; equal moves give equal results. For search, population-based
        training and counterfactuals; an agent's tools do not include it.
        """
        return await self.reset(fork_of=episode_id, episode_id=new_id)

    async def resume(self, episode_id: str) -> StepResult[Observation]:
        """Go on with an episode whose session was lost, if the server has a state folder."""
        return await self.reset(fork_of=episode_id, episode_id=episode_id)

    async def _connect_async(self) -> Self:
        """Raises `ConnectionError` without passwords, and `SettingsError` for a proxy."""
        try:
            await super()._connect_async()
        except ConnectionError as error:
            cause = error.__cause__
            if isinstance(cause, ImportError | InvalidProxy):
                told = str(cause) if isinstance(cause, ImportError) else f"must be {PROXY}"
                raise SettingsError(f"{named('_proxy') or 'the proxy'}: {told}") from None
            secrets = " ".join((self._headers or {}).values()).split()
            raise ConnectionError(one_line(str(error), *secrets)) from None
        return self

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    def __enter__(self) -> SyncClient:  # type: ignore[override] - the synchronous client
        return self._synchronous().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._synchronous().__exit__(*exception)

    def _synchronous(self) -> SyncClient:
        return cast(SyncClient, self.sync())

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[Observation]:
        data = payload.get("observation", {})
        reward, done = payload.get("reward"), payload.get("done", False)
        fields = {**data, "reward": reward, "done": done}
        observation: Observation
        if "status" in data:
            observation = StatusObservation.model_validate(fields)
        elif "tool_name" in data:
            observation = ToolObservation.model_validate(fields)
        else:
            return super()._parse_result(payload)
        return StepResult(observation=observation, reward=reward, done=done)

    def _parse_state(self, payload: dict[str, Any]) -> EpisodeState:
        return EpisodeState.model_validate(payload)
