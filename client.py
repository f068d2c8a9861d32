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

import asyncio
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
from websockets.exceptions import ConnectionClosed, InvalidProxy
from websockets.protocol import State

from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.surroundings import PROXY
from ml_trainer_env.variables import SettingsError, is_sendable, named, one_line
from ml_trainer_env.wire import EpisodeState, StatusObservation, ToolObservation

MESSAGE_TIMEOUT_S = 900.0  # 20 epochs of the hard task on a slow and busy machine

SyncClient = SyncEnvClient[Any, Observation, EpisodeState]


class ToolCallError(RuntimeError):
    """The tool did not do what was asked; its message says what it would do. Nothing changed."""


class SessionLost(ConnectionError):
    """The connection that carried the episode is gone; the message says why and what can be done.

    Nothing was sent, or nothing was answered: the episode stands after its last answered action.
    """


class MLTrainerEnv(MCPToolClient):
    """One session on a server.

    A session lives as long as its connection. Once that is gone, by `close` or by the server's
    doing, every call but `reset`, `fork` and `resume` raises `SessionLost`: a new connection would
    be another session, without the episode.

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
        self._home: Any = None  # the connection that carries the episode
        self._key: str | None = None  # of the episode

    async def list_tools(self, use_cache: bool = True) -> list[Tool]:
        """The tools with their descriptions and JSON schemas."""
        if self._tools_cache is None or not use_cache:
            listed = (await self._step_async(ListToolsAction())).observation
            if not isinstance(listed, ListToolsObservation):
                raise TypeError(f"not a list of tools: {listed!r}")
            self._tools_cache = listed.tools
        return self._tools_cache

    async def call_tool(  # type: ignore[override] - so that `name` may be an argument of the tool
        self, name: str, /, **arguments: Any
    ) -> TrainingStatus:
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

    async def fork(self, key: str, episode_id: str | None = None) -> StepResult[Observation]:
        """Go on from where another open episode of the server stands after its last action.

        `key` is in the state of its session, and nowhere else. Both then go their own ways; equal
        moves give equal results. For search, population-based training and counterfactuals; an
        agent's tools do not include it.
        """
        return await self.reset(fork_of=key, episode_id=episode_id)

    async def resume(self, key: str | None = None) -> StepResult[Observation]:
        """Go on with an episode whose session was lost; by default with this client's last one.

        The server still has it if it has a state folder, or has not noticed the loss yet.
        """
        key = key or self._key
        if key is None:
            raise ValueError("key: this client has begun no episode, so whose shall it resume?")
        return await self.reset(resume=key)

    async def _reset_async(self, **options: Any) -> StepResult[Observation]:
        self._tools_cache = None  # another episode may have other tools
        before, self._home = self._home, None  # a lost session may be replaced, and only here
        try:
            answer = await super()._reset_async(**options)
        except BaseException:
            self._home = before
            raise
        self._home = self._ws
        self._key = cast(EpisodeState, await self._state_async()).key
        return answer

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

    async def _ensure_connected(self) -> None:
        if self._home is not None and not self._is_home():
            raise SessionLost(_what_now("its connection is closed"))
        await super()._ensure_connected()

    async def _send_and_receive(self, message: dict[str, Any]) -> dict[str, Any]:
        home = self._home
        try:
            return await super()._send_and_receive(message)
        except ConnectionClosed as error:
            if home is None:
                raise
            raise SessionLost(_what_now(str(error))) from error

    def _is_home(self) -> bool:
        """Whether the present connection is the one of the episode, and lives, in this loop."""
        alive = self._ws is not None and self._ws.state is State.OPEN
        return alive and self._ws is self._home and self._ws_loop is asyncio.get_running_loop()

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


def _what_now(why: str) -> str:
    return (
        f"the session was lost: {why}. The episode stands after its last answered action: "
        "resume() goes on from there if the server still has it (ML_TRAINER_STATE_DIR keeps it), "
        "reset() begins another"
    )
