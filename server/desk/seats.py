"""The visitors of the page: each has an episode of its own, in one of the server's places.

A seat is kept by the id of the visitor's page, which Gradio makes anew whenever one is opened, and
is given up when the page is left or has been silent for long. Knows nothing of Gradio.
"""

# pyright: strict

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread

from ml_trainer_env.models import TrainingStatus
from ml_trainer_env.server.desk.story import Story, live
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.validation import ActionError

REDRAW = 0.1  # seconds between two pictures of a training: epochs may be shorter than drawing one


class Seat:
    """One visitor's environment. Its methods raise `ActionError`, and then nothing has changed."""

    def __init__(self, environment: MLTrainerEnvironment) -> None:
        self.environment = environment
        self.training = False
        self.form_is_anothers = False  # it shows the configuration of a run that was taken over
        self._stopping = threading.Event()

    @property
    def story(self) -> Story | None:
        return live(self.environment)

    async def begin(self, **options: Any) -> None:
        """Start an episode: what reset takes. Also raises `NoPlace`."""
        await self.environment.reset_async(**options)

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> TrainingStatus:
        return await self.environment.call_async(tool, arguments)

    async def train(self, arguments: Mapping[str, Any]) -> AsyncGenerator[None]:
        """Call run_epochs; yields whenever epochs have finished, and ends with its answer.

        Whoever abandons the iteration stops the training at its next epoch boundary.
        """
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        self._stopping = stopping = threading.Event()

        def stop() -> bool:  # asked at every epoch boundary, by the thread that trains
            with suppress(RuntimeError):  # the server stops, and its loop has ended
                loop.call_soon_threadsafe(news.set)
            return stopping.is_set()

        work = partial(self.environment.call, "run_epochs", arguments, stop)
        # A limiter of its own, or as many visitors as there are threads would stop all others.
        run = to_thread.run_sync(work, limiter=CapacityLimiter(1), abandon_on_cancel=True)
        task = asyncio.create_task(run)
        task.add_done_callback(lambda _: news.set())
        self.training = True
        shown = self._epochs
        try:
            while not task.done():
                await news.wait()
                news.clear()
                if self._epochs != shown and not task.done():
                    shown = self._epochs
                    yield
                    await asyncio.sleep(REDRAW)
            await task
        finally:
            stopping.set()
            self.training = False

    def stop(self) -> None:
        """End a training at its next epoch boundary; what was trained counts."""
        self._stopping.set()

    def leave(self) -> None:
        self.stop()
        self.environment.close()

    @property
    def _epochs(self) -> int:
        return self.environment.state.current_epoch


class Seats:
    """Who is on the page. Any thread may call."""

    def __init__(self, make: Callable[[], MLTrainerEnvironment]) -> None:
        self._make = make
        self._taken: dict[str, Seat] = {}
        self._lock = threading.Lock()

    def find(self, visitor: str) -> Seat | None:
        with self._lock:
            return self._taken.get(visitor)

    def seat(self, visitor: str) -> Seat:
        """The seat of this visitor; it takes one of the server's places once an episode begins."""
        with self._lock:
            if visitor not in self._taken:
                self._taken[visitor] = Seat(self._make())
            return self._taken[visitor]

    def require(self, visitor: str) -> Seat:
        """Raises `ActionError` when the visitor has no episode, or no more."""
        seat = self.find(visitor)
        if seat is None or seat.environment.episode is None:
            raise ActionError(
                "no episode is open here: start one. An episode ends when its page is left, loses "
                "its connection, or is silent for long."
            )
        return seat

    def leave(self, visitor: str | None) -> None:
        """Give up the seat of this visitor, if it has one."""
        with self._lock:
            seat = self._taken.pop(visitor, None) if visitor else None
        if seat:
            seat.leave()
