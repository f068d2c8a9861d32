"""Episodes on the real engine, played through the environment's own step, to the last reward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from openenv.core.env_server.mcp_types import CallToolAction

from ml_trainer_env.agents.moves import Move
from ml_trainer_env.models import Grade, TaskId, TrainingStatus
from ml_trainer_env.server import trainer
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime.runner import InlineRunner, Runner
from ml_trainer_env.server.trainer import TrainingState
from ml_trainer_env.wire import StatusObservation, ToolObservation

STATUS = Move("get_training_status", {})


def augment(enabled: bool) -> Move:
    return Move("toggle_augmentation", {"enabled": enabled})


@cache
def engine() -> InlineRunner:
    """One for the whole test run."""
    trainer.configure_process()
    return InlineRunner(threads=2)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An episode as far as it was seen, and the training behind it."""

    seen: tuple[ToolObservation, ...]
    training: TrainingState

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
    """One session on `runner`; with `training`, its episodes go on from there."""

    def __init__(
        self,
        task_id: TaskId = "easy_mnist",
        training: TrainingState | None = None,
        runner: Runner | None = None,
    ) -> None:
        begin = None if training is None else lambda task, seed: training
        self.env = MLTrainerEnvironment(runner or engine(), begin)
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
        return Outcome(self.seen, self.env._run.episode.now.training)


def play(*moves: Move, task_id: TaskId = "easy_mnist") -> Outcome:
    """An episode of these moves, none of which is an error."""
    outcome = Player(task_id).do(*moves)
    assert not outcome.errors
    return outcome
