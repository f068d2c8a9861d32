"""Episodes on the real engine, played through the environment's own step, to the last reward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from openenv.core.env_server.mcp_types import CallToolAction

from ml_trainer_env.agents.moves import Move
from ml_trainer_env.models import (
    Grade,
    TrainingStatus,
)
from ml_trainer_env.server import trainer
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.runtime import state_files
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.inline import Inline
from ml_trainer_env.server.runtime.runner import Runner, SliceRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.trainer import TrainingState
from ml_trainer_env.task_ids import TaskId
from ml_trainer_env.wire import StatusObservation, ToolObservation

ROOMY = 2 * 10**8  # bytes
STATUS = Move("get_training_status", {})


def augment(enabled: bool) -> Move:
    return Move("toggle_augmentation", {"enabled": enabled})


@cache
def engine() -> SliceRunner:
    """One for the whole test run."""
    trainer.configure_process()
    return inline(threads=2)


def inline(
    threads: int = 1,
    cores: int | None = None,
    max_waiting: int = 256,
    budget: int = ROOMY,
    folder: Path | None = None,
) -> SliceRunner:
    """The engine in this process, with states of its own."""
    return SliceRunner(Inline(), Cores(threads, cores, max_waiting), States(budget, folder))


def tensors_of(run: Run, runner: SliceRunner) -> TrainingState:
    """The tensors of `run`, which `runner` has trained."""
    with runner.states.nearest(run) as nearest:
        assert nearest.key == run.key, "the state is not at hand"
        assert nearest.descriptor is not None
        state = state_files.read(nearest.descriptor, run.key)
    assert isinstance(state, TrainingState)
    return state


def same_bits(one: TrainingState, other: TrainingState) -> bool:
    """Whether two trainings are the same value: key, history and every number in them.

    They must be of two runners: one keeps a single state for each key.
    """

    def tensors(state: TrainingState) -> Iterable[torch.Tensor]:
        for checkpoint in (state.current, state.best_checkpoint):
            yield from (checkpoint.weights, checkpoint.statistics)
        yield from state.moments

    return (
        (one.run, one.optimizer, one.steps) == (other.run, other.optimizer, other.steps)
        and len(one.moments) == len(other.moments)
        and all(map(torch.equal, tensors(one), tensors(other)))
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """An episode as far as it was seen, and the training behind it."""

    seen: tuple[ToolObservation, ...]
    training: Run
    runner: SliceRunner

    @property
    def tensors(self) -> TrainingState:
        return tensors_of(self.training, self.runner)

    @property
    def total(self) -> float:
        """The return: what an RL trainer would add up, errors included."""
        return sum(observation.reward or 0.0 for observation in self.seen)

    @property
    def statuses(self) -> list[TrainingStatus]:
        return [observation.status for observation in self.seen if observation.status]

    @property
    def errors(self) -> list[str]:
        return [observation.error.message for observation in self.seen if observation.error]

    @property
    def grade(self) -> Grade:
        grade = self.statuses[-1].grade
        assert grade is not None, "the episode did not end"
        return grade

    @property
    def score(self) -> float:
        return self.grade.score

    def sum_of(self, term: str) -> float:
        """Of one term of the reward, over the episode."""
        return sum(getattr(status.reward_terms, term) for status in self.statuses)


class Player:
    """One session on `runner`, whose states are at `states`, or on the test run's engine."""

    def __init__(
        self,
        task_id: TaskId = "easy_mnist",
        runner: Runner | None = None,
        states: SliceRunner | None = None,
    ) -> None:
        self.env = MLTrainerEnvironment(runner or engine())
        self._states = states or (runner if isinstance(runner, SliceRunner) else engine())
        self.reset(task_id)

    def reset(self, task_id: TaskId) -> StatusObservation:
        self.opening = self.env.reset(task_id=task_id, seed=0)
        self.seen: tuple[ToolObservation, ...] = ()
        return self.opening

    def do(self, *moves: Move) -> Outcome:
        """Make these moves; the outcome is that of the whole episode so far."""
        for tool, arguments in moves:
            observation = self.env.step(CallToolAction(tool_name=tool, arguments=arguments))
            assert isinstance(observation, ToolObservation)
            self.seen += (observation,)
        assert self.env._run is not None
        return Outcome(self.seen, self.env._run.episode.now.training, self._states)


def play(*moves: Move, task_id: TaskId = "easy_mnist") -> Outcome:
    """An episode of these moves, none of which is an error."""
    outcome = Player(task_id).do(*moves)
    assert not outcome.errors
    return outcome
