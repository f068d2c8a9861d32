"""Stable-Baselines3: `TrainingEnv`s that train side by side, for PPO and friends.

```python
model = PPO("MlpPolicy", SideBySide(64, tasks=["varied_mlp"]))
```

Needs the extra `sb3`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from ml_trainer_env.adapters.gymnasium import Ahead, Episodes, TrainingEnv


class SideBySide(DummyVecEnv):
    """`num_envs` sessions, as many as the server has places and cores for."""

    def __init__(
        self, num_envs: int = 8, *, kind: type[Episodes[Any]] = TrainingEnv, **options: Any
    ) -> None:
        """`options`: those of `kind`."""
        self._threads = ThreadPoolExecutor(num_envs, "ml-trainer-env")
        super().__init__([lambda: Ahead(kind(**options), self._threads)] * num_envs)

    def step_wait(self) -> VecEnvStepReturn:
        for env, action in zip(self.envs, self.actions, strict=True):
            cast(Ahead, env).begin(action)
        return super().step_wait()

    def close(self) -> None:
        super().close()
        self._threads.shutdown()
