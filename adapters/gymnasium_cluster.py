"""Gymnasium: a cluster, for policies that are no language models.

```python
env = gymnasium.make("ml_trainer_env.adapters.gymnasium_cluster:ml_trainer/Cluster-v0")
envs = SideBySide(16, kind=ClusterEnv, tasks=["cluster/train"])  # of adapters/stable_baselines.py
```

Needs the extra `gymnasium`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
from gymnasium.envs.registration import register
from gymnasium.spaces import Box, Discrete

from ml_trainer_env.adapters.cluster_steps import ACTIONS, FEATURES, LIMIT, features, play
from ml_trainer_env.adapters.gymnasium import Episodes
from ml_trainer_env.adapters.rollout import URL
from ml_trainer_env.models import TrainingStatus

ID = "ml_trainer/Cluster-v0"


class ClusterEnv(Episodes[np.int64]):
    """The operation of a cluster on which something may go wrong.

    ### Action Space
    `Discrete`, one number for each of `ACTIONS`: train, look closer, go back, take out or replace
    the rank that stands out, take out data shards, reshuffle, set the rate again, submit. Every
    action has a meaning at any time: before the first window all but the submission train one. At
    the deadline the model is submitted; when calls run short, a step trains up to there.

    ### Observation Space
    `Box(-5, 5, (N,))`, float32: the numbers of `FEATURES`: the clock, the last three windows, each
    rank and each data shard beside the others, and what a diagnosis has found, in the step after
    it. What does not exist, such as a fifth of four ranks, is 0.

    ### Rewards
    The final score with the last step, 0 before.

    ### Starting State
    One of `tasks`, drawn uniformly: ids, splits (`cluster/train`) or parts of them. `reset(seed=)`
    decides what is drawn; `options={"task_id": ..., "seed": ...}` sets it.

    ### Episode End
    Terminated by the submission, never truncated. The last `info` has `score` and `grade`.
    """

    of_clusters = True

    def __init__(
        self,
        tasks: Sequence[str] = ("cluster/train",),
        url: str | None = URL,
        token: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        """`url`: of the server; None trains in this process. Raises ValueError for `tasks`."""
        super().__init__(tasks, url, token, render_mode)
        self.action_space = Discrete(len(ACTIONS))
        self.observation_space = Box(-LIMIT, LIMIT, (len(FEATURES),), np.float32)

    def _begun(self, status: TrainingStatus) -> None:
        pass

    def _play(self, action: np.int64) -> None:
        play(self._rollout, operator.index(action))

    def _observation(self) -> np.ndarray:
        return np.array(features(self.status), np.float32)


register(ID, f"{__name__}:ClusterEnv")
