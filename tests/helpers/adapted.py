"""The same moves through every adapter, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import pytest
import skyrl_gym
from inspect_ai import eval as evaluate
from inspect_ai.log import EvalLog
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from ml_trainer_env.adapters import inspect, skyrl, trl
from ml_trainer_env.adapters.openenv_harness import Sessions
from ml_trainer_env.adapters.rollout import connecting
from ml_trainer_env.agents.moves import SUBMIT, Move
from ml_trainer_env.models import Grade
from ml_trainer_env.task_ids import TaskId, is_cluster


class Outcome(NamedTuple):
    """Of an episode, as whoever trains or judges an agent is told."""

    episode_return: float
    score: float


Player = Callable[[str | None, TaskId, int, Sequence[Move]], Outcome]


def plain(url: str | None, task_id: TaskId, seed: int, moves: Sequence[Move]) -> Outcome:
    """Without an adapter: what the others must agree with."""
    session = connecting(url)()
    session.begin(task_id, seed)
    total, grade = 0.0, None
    for tool, arguments in (*moves, SUBMIT):
        if grade is None:
            answer = session.call(tool, arguments)
            total += answer.reward or 0.0
            grade = answer.status and answer.status.grade
    session.close()
    assert isinstance(grade, Grade)
    return Outcome(total, grade.score)


def _trl(url: str | None, task_id: TaskId, seed: int, moves: Sequence[Move]) -> Outcome:
    told: list[float] = []
    for reward in ("return", "score"):
        run = trl.factory(url, reward=cast(trl.Reward, reward), cluster=is_cluster(task_id))()
        run.reset(task_id=task_id, seed=seed, prompt=[])
        for tool, arguments in moves:
            assert isinstance(getattr(run, tool)(**arguments), str)
        told.append(run.get_reward())
    return Outcome(*told)


def _harness(url: str | None, task_id: TaskId, seed: int, moves: Sequence[Move]) -> Outcome:
    episode = Sessions(url).create({"task_id": task_id}, seed=seed)
    for tool, arguments in moves:
        episode.call_tool(tool, arguments)
    verified = episode.verify([])
    episode.close()
    assert verified.env_reward is not None
    return Outcome(verified.env_reward, verified.metrics["score"])


def _skyrl(url: str | None, task_id: TaskId, seed: int, moves: Sequence[Move]) -> Outcome:
    row = {"task_id": task_id, "seed": seed, "max_turns": len(moves)}
    env = cast(skyrl.TextEnv, skyrl_gym.make(SKYRL, env_config={"url": url}, extras=row))
    env.init([])
    total = 0.0
    for tool, arguments in moves:
        call = json.dumps({"name": tool, "arguments": arguments})
        total += env.step(f"Well.\n<tool_call>{call}</tool_call>")["reward"]
    score = env.get_metrics()["score"]
    env.close()
    return Outcome(total, score)


def _inspect(url: str | None, task_id: TaskId, seed: int, moves: Sequence[Move]) -> Outcome:
    log = inspected(url, task_id, seed, moves)
    assert log.samples
    score = log.samples[0].scores or {}
    told = score["final_score"]
    return Outcome(cast(dict[str, Any], told.metadata)["episode_return"], cast(float, told.value))


def inspected(
    url: str | None, task_id: TaskId, seed: int, moves: Sequence[Move], **options: Any
) -> EvalLog:
    """The log of a model that makes these moves and then ends its turn."""
    usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    replies = [ModelOutput.for_tool_call(MOCK, tool, arguments) for tool, arguments in moves]
    replies += [ModelOutput.from_content(MOCK, "Done.")] * (inspect.MESSAGES - len(moves))
    for reply in replies:
        reply.usage = usage
    task = inspect.training(tasks=task_id, seeds=seed + 1)
    task.dataset = task.dataset[seed:]
    task.solver = inspect.play(url)
    model = get_model(MOCK, custom_outputs=replies)
    return evaluate(task, model=model, display="none", message_limit=2 * len(moves) + 4, **options)[
        0
    ]


MOCK = "mockllm/model"
SKYRL = "ml_trainer"
if SKYRL not in skyrl_gym.registry:
    skyrl_gym.register(id=SKYRL, entry_point="ml_trainer_env.adapters.skyrl:TextEnv")

PLAYERS: dict[str, Player] = {
    "trl": _trl,
    "openenv harness": _harness,
    "skyrl": _skyrl,
    "inspect": _inspect,
}
every_adapter = pytest.mark.parametrize("player", PLAYERS.values(), ids=PLAYERS.keys())


def has_a_place(url: str) -> bool:
    """Whether the server takes one session more."""
    session = connecting(url)()
    try:
        session.begin("easy_mnist", 0)
    except RuntimeError:
        return False
    finally:
        session.close()
    return True
