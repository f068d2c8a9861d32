"""One episode after another, in sessions that come and go: what every adapter is built on.

- A session lives as long as its episode: `begin` opens it, and the end of the episode, `finish` or
  `close` gives it back, so none is held while a trainer computes gradients.
- A lost session is found again by its moves. Training is a pure function of them, so a new session
  that makes the same calls stands where the lost one stood; what was ever trained is answered from
  the records.
- An invalid call is an answer, and its error is data.
"""

# pyright: strict, reportMissingTypeStubs=false
# OpenEnv has its types in the code.

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self, TypeVar

from openenv.core.env_server.mcp_types import Tool
from openenv.core.env_server.types import WSErrorCode
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential
from tenacity.stop import stop_base
from websockets.exceptions import WebSocketException

from ml_trainer_env.agents.local import LocalSession
from ml_trainer_env.agents.moves import SUBMIT, Move
from ml_trainer_env.agents.session import Connect, RemoteSession, Session
from ml_trainer_env.models import SERVER_BUSY, Grade, TrainingStatus
from ml_trainer_env.task_ids import TaskId
from ml_trainer_env.wire import ToolObservation

URL = "http://localhost:8000"
PATIENCE_S = 180.0  # for a server that is full, or that starts again
_FULL = WSErrorCode.CAPACITY_REACHED.value

T = TypeVar("T")


class OtherBits(RuntimeError):
    """A lost session could not be found again: the server that is there now computes other bits."""


class Busy(RuntimeError):
    """The server refused a call for now, and still does."""


def connecting(url: str | None, token: str | None = None) -> Connect:
    """How to open a session: on the server at `url`, or in this process if that is None."""
    return LocalSession if url is None else lambda: RemoteSession(url, token)


class Rollout:
    """An episode in progress, or none. Belongs to one thread at a time."""

    _session: Session | None = None

    def __init__(self, connect: Connect, patience_s: float = PATIENCE_S) -> None:
        self.status: TrainingStatus | None = None  # after the last call that was no error
        self.earned = 0.0  # the sum of the rewards
        self.errors = 0  # calls that were refused
        self._connect = connect
        self._patience = patience_s
        self._task: tuple[TaskId, int] | None = None
        self._moves: list[Move] = []
        self._known = False  # whether there is a server

    def begin(self, task_id: TaskId, seed: int = 0) -> TrainingStatus:
        """A new episode; one that was not finished is given up.

        Raises RuntimeError for a task that does not exist, and ConnectionError without a server.
        """
        self.close()
        self.status, self.earned, self.errors, self._moves = None, 0.0, 0, []
        self._task = task_id, seed
        try:
            self.status = self._persisting(self._open)
        except BaseException:
            self._task = None
            raise
        return self.status

    def call(self, tool: str, arguments: Mapping[str, Any]) -> ToolObservation:
        """What the environment answers; the session is given back when that ends the episode.

        Raises RuntimeError before `begin` and after the end: `is_over` tells.
        """
        if self._task is None or self.is_over:
            raise RuntimeError("no episode is open")
        move = Move(tool, dict(arguments))
        answer = self._persisting(lambda: self._send(move))
        if answer.status is None:
            self.errors += 1
            return answer
        self._moves.append(move)
        self.status = answer.status
        self.earned += answer.status.reward
        if answer.status.done:
            self._release()
        return answer

    def tools(self) -> Sequence[Tool]:
        """The environment's tools, with their schemas. Needs an episode."""
        return self._persisting(lambda: self._open_session().tools())

    def finish(self) -> Grade:
        """The grade; an episode that was cut off is submitted as it stands."""
        if not self.is_over:
            answer = self.call(SUBMIT.tool, SUBMIT.arguments)
            if answer.error is not None:
                raise RuntimeError(answer.error.message)
        assert self.status is not None
        assert self.status.grade is not None
        return self.status.grade

    @property
    def is_open(self) -> bool:
        """Whether there is something to call."""
        return self._task is not None and not self.is_over

    @property
    def is_over(self) -> bool:
        return self.status is not None and self.status.done

    def close(self) -> None:
        """Give up whatever is open. What was seen last can still be read."""
        self._release()
        self._task = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        """Of a trainer that forgets what it was given: wherever that is noticed, nobody waits."""
        session, self._session = self._session, None
        if session is not None and not sys.is_finalizing():  # then a thread never begins
            with suppress(RuntimeError):  # the interpreter is ending, and the connection with it
                threading.Thread(target=session.close, daemon=True).start()

    def _send(self, move: Move) -> ToolObservation:
        return _called(self._open_session(), move)

    def _open_session(self) -> Session:
        if self._session is None:
            self._open()
        assert self._session is not None
        return self._session

    def _open(self) -> TrainingStatus:
        """A session that stands after the moves so far; one that does not is given back."""
        if self._task is None:
            raise RuntimeError("no episode is open")
        self._session = self._connect()
        try:
            status = self._session.begin(*self._task)
            for move in self._moves:
                answer = _called(self._session, move)
                if answer.status is None:
                    raise OtherBits(str(answer.error))
                status = answer.status
            if self._moves and status != self.status:
                raise OtherBits(f"{self._task[0]}: the same calls have led elsewhere")
        except OtherBits:
            self.close()  # for good: what is asked for next would be asked of another run
            raise
        except BaseException:
            self._release()
            raise
        return status

    def _persisting(self, action: Callable[[], T]) -> T:
        """Do it, and again in a new session where the old one was lost, as long as is bearable."""

        def attempt() -> T:
            try:
                return action()
            except Busy:
                raise
            except BaseException:
                self._release()  # whatever it was, the moves lead back to where it stood
                raise

        # Garbage of it stays for a while, so nothing in it may know this rollout.
        trying = Retrying(
            retry=retry_if_exception(partial(_may_pass, self._known)),
            stop=_Patience(self._patience),
            wait=wait_random_exponential(multiplier=0.1, max=10),
            reraise=True,
        )
        result = trying(attempt)
        self._known = True
        return result

    def _release(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


class _Patience(stop_base):
    """Of so many seconds from the first failure on: a call may train for long before it is lost."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def __call__(self, retry_state: RetryCallState) -> bool:
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now - self._since >= self._seconds


def _may_pass(known: bool, error: BaseException) -> bool:
    """A full or busy server does, and one that is gone if there ever was one."""
    if isinstance(error, Busy) or _FULL in str(error):
        return True
    return known and isinstance(error, ConnectionError | TimeoutError | WebSocketException)


def _called(session: Session, move: Move) -> ToolObservation:
    answer = session.call(move.tool, move.arguments)
    if answer.error is not None and answer.error.message.startswith(SERVER_BUSY):
        raise Busy(answer.error.message)
    return answer
