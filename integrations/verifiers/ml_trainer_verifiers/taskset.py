"""A rollout trains a neural network, or operates a cluster that trains one: the model's replies are
tool calls, one a turn.

The reward is the return of the episode. One that ends early, at a limit or for want of a call, is
submitted as it stands.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import verifiers.v1 as vf
from pydantic import Field

from ml_trainer_verifiers.server import Json, Refused, Session, begun
from ml_trainer_verifiers.told import standing

FORM = '<tool_call>{"name": "run_epochs", "arguments": {"num_epochs": 4}}</tool_call>'
RULES = (
    "You run the training of a neural network by calling tools, one a reply, in this form: "
    f"{FORM} Configure it, run a few epochs, look at the curve, change what should be better, "
    "train on, and submit once the epochs are spent. Training on never lowers the score: the best "
    "checkpoint is graded. The good learning rate may be far from the usual ones."
)
OPERATORS_RULES = (
    "You operate the training of a neural network on a cluster by calling tools, one a reply, in "
    f"this form: {FORM} Train one or two windows at a time and compare ranks, data shards and "
    "steps; where something stands out, a diagnosis tells more. Act on what it shows, or leave it "
    "alone: whatever you do takes seconds of the clock, and some things pass by themselves. Train "
    "on to the deadline, then submit: the model as it then stands is graded."
)

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class TrainingData(vf.TaskData):
    """Which episode, and where."""

    task_id: str
    seed: int
    url: str


class TrainingConfig(vf.TasksetConfig):
    """What is played."""

    url: str = "http://localhost:8000"
    """The server; `ML_TRAINER_TOKEN` is its token."""
    tasks: list[str] = Field(default_factory=lambda: ["varied_mlp/train/0-199"])
    """Ids (`varied_mlp/eval/7`, `easy_mnist`) and ranges of instances (`varied_mlp/eval/0-47`)."""
    seeds: int = 1
    """Seeds 0, 1, ... of each."""


class TrainingTask(vf.Task[TrainingData]):
    """One episode."""


class TrainingTaskset(vf.Taskset[TrainingTask, TrainingConfig]):
    """Tasks times seeds."""

    def load(self) -> Iterator[TrainingTask]:
        for task_id in (each for named in self.config.tasks for each in _ids(named)):
            for seed in range(self.config.seeds):
                data = TrainingData(
                    name=f"{task_id} seed {seed}",
                    prompt=None,
                    system_prompt=OPERATORS_RULES if task_id.startswith("cluster/") else RULES,
                    task_id=task_id,
                    seed=seed,
                    url=self.config.url,
                )
                yield TrainingTask(data, self.config.task)


class TrainingEnvConfig(vf.EnvConfig):
    """Who plays."""

    player: vf.AgentConfig = vf.AgentConfig()


class TrainingEnv(vf.Env[TrainingEnvConfig]):
    """Carries the model's calls to the server."""

    async def run(self, task, agents):
        data = task.data
        token = os.environ.get("ML_TRAINER_TOKEN")
        async with begun(data.url, token, task_id=data.task_id, seed=data.seed) as (
            session,
            status,
        ):
            total, grade = 0.0, None
            async with agents.player.interaction(task) as interaction:
                tools = json.dumps(await session.tools())
                said = f"Tools: {tools}\n{status['message']}\n{standing(status)}"
                segment = await interaction.turn(said)
                while not segment.terminated:
                    said, reward, grade = await _carry_out(session, segment.last_reply)
                    total += reward
                    if grade is not None:
                        break
                    segment = await interaction.turn(said)
            if grade is None:  # cut off
                _, reward, grade = await _call(session, "submit_model", {})
                total += reward
        interaction.trace.record_reward("episode_return", total)
        interaction.trace.info["grade"] = grade


async def _carry_out(session: Session, reply: str) -> tuple[str, float, Json | None]:
    """The call in a reply: what to say to the model, the reward, and at the end the grade."""
    found = _CALL.search(reply)
    if found is None:
        return f"error: no call; reply with {FORM}", 0.0, None
    try:
        call = json.loads(found[1])
        name, arguments = str(call["name"]), dict(call.get("arguments", {}))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"error: {error}; reply with {FORM}", 0.0, None
    return await _call(session, name, arguments)


async def _call(session: Session, name: str, arguments: Json) -> tuple[str, float, Json | None]:
    try:
        answer = await session.call(name, arguments)
    except Refused as error:  # too deep, too long, or no text
        return f"error: {error}", 0.0, None
    if answer["error"]:
        return f"error: {answer['error']['message']}", 0.0, None
    status = answer["status"]
    told = status["message"]
    if status["epochs_run"] or status.get("cluster"):
        told = f"{told}\n{standing(status)}"
    return told, answer["reward"], status["grade"]


def _ids(named: str) -> Iterator[str]:
    place, _, numbers = named.rpartition("/")
    bounds = re.fullmatch(r"(\d+)-(\d+)", numbers)
    if bounds is None:
        yield named
        return
    for index in range(int(bounds[1]), int(bounds[2]) + 1):
        yield f"{place}/{index}"
