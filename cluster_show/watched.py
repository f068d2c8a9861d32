"""Ranks that are watched: they do what those do that they wrap, and show it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker

from torch import Tensor

from ml_trainer_env.cluster_show.screen import Screen
from ml_trainer_env.server.cluster.ranks import Contribution, Part, Ranks, Update
from ml_trainer_env.server.cluster.seen import Seen
from ml_trainer_env.server.cluster.state import Checkpoint, Fleet, Model


class Watched:
    """`pids`: of the processes of the hosts, where they are processes."""

    def __init__(
        self, ranks: Ranks, screen: Screen, pids: Callable[[], Mapping[int, int]] | None
    ) -> None:
        self._ranks = ranks
        self._screen = screen
        self._pids = pids
        self._seen = Seen()

    def window(self, fleet: Fleet) -> None:
        """Another one begins."""
        self._fleet, self._seen = fleet, Seen()

    def begin(self, hosts: Sequence[int], model: Model, apart: Mapping[int, Tensor]) -> None:
        with self._processes():
            self._ranks.begin(hosts, model, apart)

    def contribute(self, parts: Sequence[Part]) -> list[Contribution]:
        found = self._ranks.contribute(parts)
        loss = self._seen.look(parts, found, [0.0] * len(parts))
        self._screen.step(loss, self._seen.ranks(self._fleet))
        return found

    def update(self, made: Update) -> float:
        return self._ranks.update(made)

    def part(self, host: int) -> None:
        self._screen.say(f"host {host} misses every update from here on", "magenta")
        self._ranks.part(host)

    def lose(self, host: int) -> None:
        with self._processes():
            self._ranks.lose(host)

    def flip(self, place: int, bit: int) -> None:
        self._screen.say(f"bit {bit} of weight {place} turned", "magenta")
        self._ranks.flip(place, bit)

    def model(self) -> Model:
        return self._ranks.model()

    def apart(self) -> dict[int, Tensor]:
        return self._ranks.apart()

    def write(self, checkpoint: Checkpoint) -> None:
        if checkpoint.damaged:
            told = f"the checkpoint of step {checkpoint.step} was cut off in the middle"
            self._screen.say(told, "magenta")
        self._ranks.write(checkpoint)

    def read(self, checkpoint: Checkpoint) -> Model:
        return self._ranks.read(checkpoint)

    @contextmanager
    def _processes(self) -> Iterator[None]:
        """Say which processes end and begin in the block; of the first ones, that they do."""
        if not self._pids:
            yield
            return
        before = self._pids()
        if not self._screen.steps_ever:
            self._screen.say("a process is started for each host", "magenta")
        with _uninterrupted():
            yield
        after = self._pids()
        for host in sorted(set(before) - set(after)):
            self._screen.say(f"host {host}: process {before[host]} was killed", "magenta")
        for host in sorted(set(after) - set(before)):
            if self._screen.steps_ever:
                self._screen.say(f"host {host}: process {after[host]} was started", "magenta")
        self._screen.processes(after)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is over, and processes that it starts never get it: they end
    with this one, and have nothing to say.
    """
    resource_tracker.ensure_running()  # which lets signals through again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
