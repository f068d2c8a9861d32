"""An attempt: all that one agent does for one score, within one epoch budget.

Guarantees:
- All sessions of an attempt together train at most the epoch budget of one task, so a search pays
  for its trials.
- One submission: it ends the attempt, whichever session it comes from.
- Every session, call and answer goes to the observers in its order: the record, curves, progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from ml_trainer_env.agents.players import Player
from ml_trainer_env.agents.records import Called, Ended, Header, Line, Opened, Remark
from ml_trainer_env.agents.session import Connect, Session, Tool
from ml_trainer_env.models import (
    MAX_EPOCHS_PER_CALL,
    TrainingStatus,
)
from ml_trainer_env.task_ids import TaskId, is_cluster

Observer = Callable[[Line], None]


class Refused(Exception):
    """The call changed nothing and cost nothing; the message says what would be allowed."""


class Trial:
    """One session of an attempt: a line of training, from the start or from a fork."""

    def __init__(
        self, attempt: Attempt, number: int, session: Session, status: TrainingStatus, earned: float
    ) -> None:
        self.number = number
        self.session = session
        self.status = status  # after the last call that was answered without an error
        self.earned = earned  # the rewards on the way here, a fork's parents included
        self._attempt = attempt

    @property
    def is_over(self) -> bool:
        """Whether the one submission of the attempt was made, here or in another session."""
        return self._attempt.ended is not None

    def call(self, tool: str, /, **arguments: Any) -> TrainingStatus:
        """Call a tool of the environment. Raises `Refused`."""
        return self._attempt.call(self, tool, arguments)

    def run(self, epochs: int) -> TrainingStatus:
        return self.call("run_epochs", num_epochs=epochs)


class Attempt:
    """`player` on one task and seed, in sessions that `connect` opens."""

    def __init__(
        self,
        player: Player | str,  # or the name of an agent that is no more than that
        connect: Connect,
        task_id: TaskId,
        seed: int,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.task_id: TaskId = task_id  # its type is narrower than the one that would be inferred
        self.seed = seed
        self.trials: list[Trial] = []
        self.ended: Ended | None = None
        self._player = Player(agent=player) if isinstance(player, str) else player
        self._connect = connect
        self._observers = observers
        self._budget = 0
        self._spent = self._calls = self._errors = 0
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        for trial in self.trials:
            trial.session.close()

    @property
    def budget(self) -> int:
        """Epochs that all sessions together may train. Needs a session."""
        return self._budget

    @property
    def remaining(self) -> int:
        """Epochs that all sessions together may still train. Needs a session."""
        return self.budget - self._spent

    def begin(self) -> Trial:
        """A session at the start of the task. A cluster has one: raises `Refused` for another."""
        self._require_single()
        session = self._connect()
        try:
            status = session.begin(self.task_id, self.seed)
        except BaseException:
            session.close()
            raise
        return self._opened(session, status)

    def fork(self, parent: Trial) -> Trial:
        """A session that goes on from where `parent` stands; both then go their own ways. Not of a
        cluster, where that would be to look into the future: raises `Refused`.
        """
        self._require_single()
        key = parent.session.state().key
        assert key is not None, "a trial has begun an episode"
        session = self._connect()
        try:
            status = session.fork(key)
        except BaseException:
            session.close()
            raise
        return self._opened(session, status, parent)

    def tools(self) -> Sequence[Tool]:
        """The environment's tools, with their schemas."""
        return self.trials[0].session.tools()

    def remark(self, text: str) -> None:
        """Put the agent's own words on record."""
        self._tell(Remark(text=text))

    def call(self, trial: Trial, tool: str, arguments: dict[str, Any]) -> TrainingStatus:
        """What `trial` calls. Raises `Refused`."""
        if self.ended:
            raise Refused("the attempt has ended: its one submission was made")
        arguments = self._within_budget(trial, tool, arguments)
        started = time.perf_counter()
        answer = trial.session.call(tool, arguments)
        seconds = time.perf_counter() - started
        trained = answer.status is not None and answer.status.epochs_run
        called = Called(
            session=trial.number,
            tool=tool,
            arguments=arguments,
            status=answer.status,
            error=answer.error and answer.error.message,
            seconds=seconds,
            epochs=trial.session.state().epochs if trained else (),
        )
        self._tell(called)
        if called.status is None:
            self._errors += 1
            raise Refused(called.error or "no answer")
        trial.status = called.status
        trial.earned += called.status.reward
        self._calls += 1
        self._spent += called.status.epochs_run
        if called.status.grade is not None:
            self._end(trial)
        return called.status

    def _require_single(self) -> None:
        if self.trials and is_cluster(self.task_id):
            raise Refused("an attempt at a cluster has one session")

    def _within_budget(self, trial: Trial, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments, with epochs cut to what other sessions have left of the budget."""
        wanted: Any = arguments.get("num_epochs")
        own = trial.status.remaining_budget
        if trial.status.cluster:  # it has one session, and a clock
            return arguments
        if tool != "run_epochs" or not _is_epochs(wanted) or self.remaining >= own:
            return arguments
        if self.remaining == 0:
            raise Refused("the epoch budget that all sessions share is spent: call submit_model")
        return arguments | {"num_epochs": min(wanted, self.remaining)}

    def _opened(
        self, session: Session, status: TrainingStatus, parent: Trial | None = None
    ) -> Trial:
        trial = Trial(self, len(self.trials), session, status, parent.earned if parent else 0.0)
        if not self.trials:
            self._budget = status.remaining_budget
            self._tell(self._header(session, status))
        self.trials.append(trial)
        taken_over = status.current_epoch > 0 and parent is None
        self._tell(
            Opened(
                session=trial.number,
                fork_of=parent and parent.number,
                status=status,
                epochs=session.state().epochs if taken_over else (),
            )
        )
        return trial

    def _header(self, session: Session, status: TrainingStatus) -> Header:
        state = session.state()
        return Header(
            **self._player.model_dump(),
            task_id=self.task_id,
            task_version=state.task_version or 0,
            seed=self.seed,
            engine=state.engine,
            max_epochs=status.remaining_budget,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _end(self, trial: Trial) -> None:
        assert trial.status.grade is not None
        self.ended = Ended(
            session=trial.number,
            grade=trial.status.grade,
            episode_return=trial.earned,
            epochs=self._spent,
            calls=self._calls,
            errors=self._errors,
            seconds=time.perf_counter() - self._started,
        )
        self._tell(self.ended)

    def _tell(self, line: Line) -> None:
        for observe in self._observers:
            observe(line)


def _is_epochs(wanted: Any) -> bool:
    """Whether the environment takes it for a number of epochs: 5.0 too. What is not, it refuses."""
    return type(wanted) in (int, float) and wanted in range(1, MAX_EPOCHS_PER_CALL + 1)
