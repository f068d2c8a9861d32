"""SkyRL: a text environment for `skyrl_gym`, whose model writes its calls as text.

```python
# in the Ray worker
skyrl_gym.register(id="ml_trainer", entry_point="ml_trainer_env.adapters.skyrl:TextEnv")
env = skyrl_gym.make("ml_trainer", env_config={}, extras={"task_id": "varied_mlp/train/17"})
```

A reply is one call in the form that Qwen's and Hermes' templates have taught:
`<tool_call>{"name": "run_epochs", "arguments": {"num_epochs": 4}}</tool_call>`. What is none is
answered by what would be. The reward of a turn is that of its call; the last turn submits.
"""

# pyright: strict, reportMissingTypeStubs=false
# SkyRL and OpenEnv have their types in the code.

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput, ConversationType

from ml_trainer_env.adapters import text
from ml_trainer_env.adapters.rollout import URL, Rollout, connecting
from ml_trainer_env.agents.moves import Move
from ml_trainer_env.task_ids import is_cluster

MAX_TURNS = 24  # an instance has 20 calls; some may be refused
MAX_TURNS_OF_CLUSTER = 48  # of 40 calls
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_FORM = '<tool_call>{"name": "run_epochs", "arguments": {"num_epochs": 4}}</tool_call>'


class TextEnv(BaseTextEnv):
    """One episode.

    `env_config`: `url` of the server (default: this machine's; null: in this process), `token`.
    `extras`: a row of the data set, with `task_id`, and perhaps `seed` and `max_turns`; they may
    also be in its `extra_info`.
    """

    def __init__(
        self, env_config: Mapping[str, Any] | None = None, extras: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.turns = 0
        config, row = env_config or {}, extras or {}
        row = {**row.get("extra_info", {}), **row}
        self._task, self._seed = row["task_id"], int(row.get("seed", 0))
        most = MAX_TURNS_OF_CLUSTER if is_cluster(self._task) else MAX_TURNS
        self.max_turns = int(row.get("max_turns", most))
        self._rollout = Rollout(connecting(config.get("url", URL), config.get("token")))

    def init(self, prompt: ConversationType) -> tuple[ConversationType, dict[str, Any]]:
        """The prompt, then the task's card and how to call a tool."""
        opening = text.opening(self._rollout.begin(self._task, self._seed))
        tools = [
            {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
            for tool in self._rollout.tools()
        ]
        told = f"Reply with one call, such as {_FORM}\nTools: {json.dumps(tools)}\n{opening}"
        return [*prompt, {"role": "user", "content": told}], {"task_id": self._task}

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """Carry out the call in `action`."""
        self.turns += 1
        before = self._rollout.earned
        move = _move(action)
        told = f"error: {move}" if isinstance(move, str) else self._call(move)
        if self.turns >= self.max_turns:
            self._rollout.finish()
        done = self._rollout.is_over
        return BaseTextEnvStepOutput(
            observations=[] if done else [{"role": "user", "content": told}],
            reward=self._rollout.earned - before,
            done=done,
            metadata=self.get_metrics(),
            postprocessed_action=None,
        )

    def get_metrics(self) -> dict[str, Any]:
        """Turns and refused calls, and after the end the final score."""
        told = {"turns": self.turns, "errors": self._rollout.errors}
        return told | ({"score": self._rollout.finish().score} if self._rollout.is_over else {})

    def close(self) -> None:
        self._rollout.close()

    def _call(self, move: Move) -> str:
        return text.answer(self._rollout.call(move.tool, move.arguments))


def _move(action: str) -> Move | str:
    """The first call in a reply, or what is wrong with it."""
    found = _CALL.search(action)
    if found is None:
        return f"no call; reply with {_FORM}"
    try:
        call: Any = json.loads(found[1])
    except (ValueError, RecursionError) as error:
        return f"the call is no JSON: {error}; reply with {_FORM}"
    call = cast(dict[str, Any], call) if isinstance(call, dict) else {}
    name, arguments = call.get("name"), call.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return f"a call has a name, and arguments that are an object; reply with {_FORM}"
    return Move(name, cast(dict[str, Any], arguments))
