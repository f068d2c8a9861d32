"""Gymnasium: an episode in a few large steps, for policies that are no language models.

```python
env = gymnasium.make("ml_trainer_env.adapters.gymnasium:MLTrainer-v0", tasks=["varied_mlp"])
envs = VectorTrainings(64, tasks=["varied_mlp"])  # sessions that train side by side
```

Needs the extra `gymnasium`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, ClassVar, TypeVar, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import register
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import iterate

from ml_trainer_env.adapters.rollout import URL, Rollout, connecting
from ml_trainer_env.adapters.steps import ACTIONS, FEATURES, LIMIT, Decision, Seen, play
from ml_trainer_env.models import MAX_SEED, TrainingStatus
from ml_trainer_env.task_ids import ENDLESS_FROM, VARIED, TaskId, is_cluster, named

ID = "MLTrainer-v0"

Action = TypeVar("Action")


class Episodes(gymnasium.Env[np.ndarray, Action]):
    """What the environments of single networks and of clusters have in common."""

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's own form
    of_clusters: ClassVar[bool]

    def __init__(
        self, tasks: Sequence[str], url: str | None, token: str | None, render_mode: str | None
    ) -> None:
        self.render_mode = render_mode
        self._tasks = [[] if name in VARIED else named(name) for name in tasks]
        self._names = tuple(tasks)
        for name, ids in zip(tasks, self._tasks, strict=True):
            self._require_mine(ids[0] if ids else name)
        self._rollout = Rollout(connecting(url, token))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._rollout.close()
        drawn = {"task_id": self._drawn(), "seed": int(self.np_random.integers(MAX_SEED + 1))}
        if unknown := set(options or {}) - set(drawn):
            raise ValueError(f"options: {', '.join(unknown)}; known: {', '.join(drawn)}")
        chosen = drawn | (options or {})
        self._require_mine(chosen["task_id"])
        self._begun(self._rollout.begin(chosen["task_id"], chosen["seed"]))
        return self._observation(), chosen | {"task_id": self.status.task_id}

    def step(self, action: Action) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Raises `gymnasium.error.ResetNeeded` without an open episode."""
        if not self._rollout.is_open:
            raise gymnasium.error.ResetNeeded("no episode is open")
        earned = self._rollout.earned
        self._play(action)
        info: dict[str, Any] = {"task_id": self.status.task_id}
        if self.status.grade is not None:
            info |= {"score": self.status.grade.score, "grade": self.status.grade}
        return (
            self._observation(),
            self._rollout.earned - earned,
            self.status.done,
            False,
            info,
        )

    @property
    def status(self) -> TrainingStatus:
        """What a client sees, after the last step."""
        assert self._rollout.status is not None
        return self._rollout.status

    def render(self) -> str | None:
        return str(self._rollout.status) if self.render_mode == "ansi" else None

    def close(self) -> None:
        self._rollout.close()

    @abstractmethod
    def _begun(self, status: TrainingStatus) -> None:
        """An episode has."""

    @abstractmethod
    def _play(self, action: Action) -> None:
        """What `action` means."""

    @abstractmethod
    def _observation(self) -> np.ndarray:
        """Of where the episode stands."""

    def _drawn(self) -> TaskId:
        number = int(self.np_random.integers(len(self._tasks)))
        if ids := self._tasks[number]:
            return ids[int(self.np_random.integers(len(ids)))]
        index = ENDLESS_FROM + int(self.np_random.integers(MAX_SEED + 1))
        return f"{self._names[number]}/train/{index}"

    def _require_mine(self, name: str) -> None:
        """Raises ValueError: what is seen of a cluster, and done, is not what is of a network."""
        if is_cluster(name) and not self.of_clusters:
            raise ValueError(f"{name} is a cluster: ClusterEnv of gymnasium_cluster.py plays it")
        if self.of_clusters and not is_cluster(name):
            raise ValueError(f"{name} is no cluster: TrainingEnv of gymnasium.py plays it")


class TrainingEnv(Episodes[np.ndarray]):
    """The training of a neural network, a few epochs a step.

    ### Action Space
    `MultiDiscrete([7, 5, 2, 5])`. A step configures AdamW, and trains:

    | part | values |
    |---|---|
    | learning rate | the present one times 1/30, 1/10, 1/3, 1, 3, 10, 30; 1e-6 to 10 |
    | regularisation | a notch from 0 to 4: dropout, augmentation and weight decay together |
    | schedule | constant, or cosine to zero over all that is left of the budget |
    | train | 1, 2, 4 or 8 epochs; or all that is left, then submit |

    Every combination has a meaning. After a divergence a step goes on from the best checkpoint.
    With the last epoch the model is submitted; when calls run short, a step trains all that is
    left. Batches have 64 images.

    ### Observation Space
    `Box(-5, 5, (N,))`, float32: the numbers of `FEATURES`, scaled to about -1 to 1, with what the
    last eight steps have brought, so a policy needs little memory. What does not exist yet is 0.

    ### Rewards
    Those of the environment, the final score among them: the return ranks runs as the score does.

    ### Starting State
    One of `tasks`, drawn uniformly: ids, splits (`varied_mlp/eval`), parts of them
    (`varied_mlp/eval/0-11`), or a family alone, which is `train` without end. `reset(seed=)`
    decides what is drawn; `options={"task_id": ..., "seed": ...}` sets it.

    ### Episode End
    Terminated by the submission, never truncated. The last `info` has `score` and `grade`.
    """

    of_clusters = False
    _seen: Seen | None = None

    def __init__(
        self,
        tasks: Sequence[str] = ("varied_mlp",),
        url: str | None = URL,
        token: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        """`url`: of the server; None trains in this process. Raises ValueError for `tasks`."""
        super().__init__(tasks, url, token, render_mode)
        self.action_space = MultiDiscrete(list(ACTIONS))
        self.observation_space = Box(-LIMIT, LIMIT, (len(FEATURES),), np.float32)

    def _begun(self, status: TrainingStatus) -> None:
        self._seen = Seen(status)

    def _play(self, action: np.ndarray) -> None:
        assert self._seen is not None
        play(self._rollout, Decision.of(np.asarray(action).tolist()))
        self._seen.after(self.status)

    def _observation(self) -> np.ndarray:
        assert self._seen is not None
        return np.array(self._seen.features(), np.float32)


class Ahead(gymnasium.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Steps in a thread of its own before it is asked to, and after the end resets there, too.

    So whoever steps through a list of environments waits for the slowest, not for all in turn.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, Any], threads: ThreadPoolExecutor) -> None:
        super().__init__(env)
        self._threads = threads
        self._step: Future[Any] | None = None
        self._reset: Future[Any] | None = None

    def begin(self, action: Any) -> None:
        """Start the step that the next call of `step` asks for."""
        if self._reset is None:  # else the next call is `reset`
            self._step = self._threads.submit(self._play, action)

    def step(self, action: Any) -> Any:
        step, self._step = self._step, None
        return self.env.step(action) if step is None else step.result()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if self._step is not None:  # an error elsewhere came between it and who asked for it
            self._settle()
        ahead, self._reset = self._reset, None
        if ahead is not None:
            first = ahead.result()
            if seed is None and not options:
                return first
        return self.env.reset(seed=seed, options=options)

    def close(self) -> None:
        self._settle()
        super().close()

    def _settle(self) -> None:
        """Wait for what is under way, and forget it."""
        if self._step is not None:
            wait([self._step])
        if self._reset is not None:
            wait([self._reset])
        self._step = self._reset = None

    def _play(self, action: Any) -> Any:
        result = self.env.step(action)
        if result[2]:
            self._reset = self._threads.submit(self.env.reset)
        return result


class VectorTrainings(SyncVectorEnv):
    """Sessions that train side by side, as far as the server has places and cores for them."""

    def __init__(
        self,
        num_envs: int = 8,
        *,
        kind: type[Episodes[Any]] = TrainingEnv,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        **options: Any,
    ) -> None:
        """`options`: those of `kind`."""
        self._threads = ThreadPoolExecutor(num_envs, "ml-trainer-env")
        make = [lambda: Ahead(kind(**options), self._threads)] * num_envs
        super().__init__(make, autoreset_mode=autoreset_mode)

    def step(self, actions: Any) -> Any:
        each = list(iterate(self.action_space, actions))
        for env, action in zip(cast(list[Ahead], self.envs), each, strict=True):
            env.begin(action)
        return super().step(actions)

    def close_extras(self, **options: Any) -> None:
        super().close_extras(**options)
        self._threads.shutdown()


register(ID, f"{__name__}:TrainingEnv", vector_entry_point=f"{__name__}:VectorTrainings")
