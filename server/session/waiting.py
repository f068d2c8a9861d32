"""Long work for a client who may not wait for it: in a thread, told when nobody does any more.

The doors send the message of an exception on, whatever it is. So nothing leaves here but
`ActionError`, whose message is for the client, and `InternalError`, which says nothing of ours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from ml_trainer_env.server import counters
from ml_trainer_env.server.machine.ending import Ending
from ml_trainer_env.server.runtime.asking import Bell
from ml_trainer_env.server.session.connection import current_connection
from ml_trainer_env.server.validation import ActionError

T = TypeVar("T")

log = logging.getLogger("uvicorn.error")  # uvicorn's own: where an operator looks


class InternalError(RuntimeError):
    """Our mistake, as a client is told of it. The details are in the log."""


@contextmanager
def details_in_the_log() -> Generator[None, None, None]:
    """Raises `ActionError` as it comes, and `InternalError` for all other exceptions."""
    try:
        yield
    except (ActionError, InternalError):
        raise
    except Ending as error:
        raise InternalError(str(error)) from None
    except Exception as error:
        counters.FAILURES.inc()
        log.exception("our mistake")
        raise InternalError("the server failed; the reason is in its log") from error


def nothing() -> None:
    """What a client does about epoch boundaries who is not interested in them."""


class Stop:
    """Whether nobody waits for this call any more: client gone, task cancelled, or time is up.

    Training asks at every epoch boundary, so this is also what tells `notice` of them, in the
    thread that trains.
    """

    def __init__(
        self, timeout_s: float | None = None, notice: Callable[[], object] = nothing
    ) -> None:
        self.bell = Bell()
        self._cancelled = False
        self._notice = notice
        self._connection = current_connection.get()
        if self._connection:
            self._connection.rings(self.bell)
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    def __call__(self) -> bool:
        if self._cancelled:  # nor is there anybody to be told
            return True
        self._notice()
        late = self._deadline is not None and time.monotonic() > self._deadline
        return late or (self._connection is not None and self._connection.lost())

    def end(self) -> None:
        """The call is over, or its task cancelled: nobody waits for it any more."""
        self._cancelled = True
        self.bell.ring()
        if self._connection:
            self._connection.forgets(self.bell)


async def in_thread(work: Callable[..., T], stop: Stop | None = None) -> T:
    """`work()`, or `work(stop=stop)`, in a thread of its own; when this task is cancelled, `stop`
    says so.

    A limiter for each call: the default one would let 40 trainings block all other sessions.
    Raises `ActionError` and `InternalError`.
    """
    job = partial(work, stop=stop) if stop else work
    try:
        with details_in_the_log():
            return await to_thread.run_sync(job, abandon_on_cancel=True, limiter=CapacityLimiter(1))
    finally:
        if stop:
            stop.end()
