"""Where training runs. One interface, in terms of runs; what is behind it never changes a bit.

Runners differ in who computes (`Executor`) and in nothing else. A request for epochs is carried out
in slices of about a quarter of a second, at least one epoch each; between two of them cores are
asked for anew, so a short request never waits for a long one to end.

Guarantees of `SliceRunner`:
- Epochs are told of as they are made. When nobody wants them any more, training stops at the next
  epoch boundary.
- An executor that is lost costs at most its slice: the run goes on from the nearest state at hand.
- The same holds for states that are nowhere: they are trained again, and every epoch that is must
  give the bits that it gave before.
"""

# pyright: strict

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from ml_trainer_env.models import EpochRecord
from ml_trainer_env.server import counters
from ml_trainer_env.server.runs import Engine, Plan, Run
from ml_trainer_env.server.runtime.asking import Asker, CalledOff
from ml_trainer_env.server.runtime.cores import Cores, Turn
from ml_trainer_env.server.runtime.orders import METRICS, Answer, Order, Outcome, Told, record
from ml_trainer_env.server.runtime.states import Nearest

log = logging.getLogger("uvicorn.error")  # uvicorn's own: where an operator looks

ATTEMPTS = 3  # at one epoch: one that kills every worker, say for memory, must not do so for ever
STARTS = 10  # of workers that end before they can take an order, which is not the epoch's fault


class ExecutorLost(EOFError):
    """Whoever computed is gone, in the middle of it."""


class NeverStarted(ExecutorLost):
    """It was gone before it could take anything."""


class WorkerLost(RuntimeError):
    """Every worker that tried this epoch was killed."""


class WorkerFailed(RuntimeError):
    """The engine raised an exception; the message is its traceback."""


class SharedEpochMismatch(AssertionError):
    """An epoch trained again did not give the bits that it gave: the engine broke its word."""


class Trained(NamedTuple):
    """An epoch that came of a request."""

    record: EpochRecord
    seconds: float  # of training, whoever trained it
    shared: bool = False  # taken from another training instead of computed


class Runner(Protocol):
    """Trains and grades runs; blocks the calling thread until the next result is there."""

    def engine(self) -> Engine:
        """What trains, and so what runs begin with."""
        ...

    def train(
        self, run: Run, plans: Sequence[Plan], asker: Asker | None = None
    ) -> Generator[Trained]:
        """The epochs that follow on `run`, one by one.

        Ends early after a divergence, and as soon as the asker is gone. Raises `QueueFull` when
        too many wait for their first epoch. Close it to stop training.
        """
        ...

    def test_accuracy(self, run: Run) -> float:
        """Hidden-test accuracy of the best checkpoint of `run`."""
        ...


class Answers(Protocol):
    """What an executor says of an order, one after another, up to the one that is the last."""

    def __next__(self) -> Told:
        """Raises `ExecutorLost`."""
        ...

    def stop(self) -> None:
        """Let the epoch in progress be the last one. Raises `ExecutorLost`."""
        ...


class Executor(Protocol):
    """Who computes."""

    def engine(self) -> Engine: ...

    def perform(self, order: Order, state: int | None) -> AbstractContextManager[Answers]:
        """Carry out `order`, on the state in the file with this descriptor.

        Whoever leaves the block before the last answer gives the rest up.
        """
        ...


class Kept(Protocol):
    """The states that are kept: `States`, or what knows of them where they lie."""

    folder: Path | None
    budget: int  # bytes

    @property
    def used(self) -> int: ...

    def __len__(self) -> int: ...

    def nearest(self, run: Run) -> Nearest: ...

    def put(self, key: str, size: int, descriptor: int | None, left: str | None = None) -> None: ...

    def remove(self, key: str) -> None: ...

    def close(self) -> None: ...


class SliceRunner:
    """Has `executor` carry requests out, slice by slice, on `cores`. Any thread may call."""

    def __init__(self, executor: Executor, cores: Cores, states: Kept) -> None:
        self.executor = executor
        self.cores = cores
        self.states = states

    def engine(self) -> Engine:
        engine = self.executor.engine()
        counters.ENGINE.labels(engine.fingerprint, engine.precision).set(1)
        return engine

    def train(
        self, run: Run, plans: Sequence[Plan], asker: Asker | None = None
    ) -> Generator[Trained]:
        request = _Request(run, list(plans), asker or Asker())
        with suppress(CalledOff):
            while request.is_wanted():
                yield from self._slice(request)

    def test_accuracy(self, run: Run) -> float:
        request = _Request(run, [], Asker(admitted=True), grade=True)
        while request.accuracy is None:
            for _ in self._slice(request):
                raise AssertionError("an epoch that nobody asked for")
        counters.GRADES_COMPUTED.inc()
        return request.accuracy

    def _slice(self, request: _Request) -> Generator[Trained]:
        """One turn at the cores. They are given back before the last epoch is told of."""
        last = None  # it stays so where the executor is lost
        with (
            self.cores.lend(request.asker) as turn,
            request.losses_counted(),
            self.states.nearest(request.run) as nearest,
        ):
            order = request.order(nearest, turn, self.states.folder)
            with self.executor.perform(order, nearest.descriptor) as answers:
                last = yield from self._epochs(request, order, answers, turn)
        if last is not None:
            yield last

    def _epochs(
        self, request: _Request, order: Order, answers: Answers, turn: Turn
    ) -> Generator[Trained, None, Trained | None]:
        """What comes of `order`, up to its last epoch, which is returned.

        Epochs that were trained before are compared, and not told.
        """
        again = list(request.run.history[len(request.run.history) - order.again :])
        ended = stopped = gone = False
        try:
            while not ended:
                answer = self._next(answers, order)
                ended = answer.last
                request.accuracy = answer.test_accuracy
                if answer.outcome is not None:
                    if again:
                        counters.EPOCHS_REPEATED.inc()
                        _compare(again.pop(0), answer.outcome, request.run)
                    elif not gone and ended:
                        return request.take(answer)
                    elif not gone:
                        yield request.take(answer)
                gone = gone or (not ended and request.asker.gone())
                if not stopped and not ended and (gone or (turn.over() and not request.stuck)):
                    stopped = True
                    answers.stop()
        except GeneratorExit:  # nobody listens any more
            if not ended:
                answers.stop()
            while not ended:
                ended = self._next(answers, order).last
            raise
        return None

    def _next(self, answers: Answers, order: Order) -> Answer:
        """The next answer; the state that comes with the last one is kept."""
        answer, file, _ = next(answers)
        if answer.error is not None:
            raise WorkerFailed(answer.error)
        if answer.unreadable and order.state is not None:
            log.warning("state %s is damaged or gone; it is trained again", order.state)
            self.states.remove(order.state)
        if answer.key is not None and answer.size is not None:
            self.states.put(answer.key, answer.size, file, left=order.state)
        return answer


@dataclass(slots=True)
class _Request:
    """How far a request for epochs, or for a grade, has come."""

    run: Run
    left: list[Plan]
    asker: Asker
    grade: bool = False
    accuracy: float | None = None
    ended: bool = False
    begun: int = -1  # the latest epoch from which a slice went on
    stuck: bool = False  # slices that train again end before they reach anything new
    killed: int = 0  # workers, since there was anything new
    unstarted: int = 0

    def is_wanted(self) -> bool:
        return bool(self.left) and not self.ended and not self.asker.gone()

    def order(self, nearest: Nearest, turn: Turn, folder: Path | None) -> Order:
        """What is to be done in this turn, beginning with the state that is at hand."""
        again = [record.plan for record in self.run.history[nearest.epoch :]]
        self.stuck = bool(again) and nearest.epoch <= self.begun
        if nearest.epoch > self.begun:
            self.killed = self.unstarted = 0
        self.begun = max(self.begun, nearest.epoch)
        return Order(
            workload=self.run.workload,
            seed=self.run.seed,
            precision=self.run.precision,
            state=nearest.key,
            plans=(*again, *self.left),
            again=len(again),
            at_least=len(again) + 1 if self.stuck else 1,
            seconds=turn.seconds,
            threads=turn.threads,
            grade=self.grade and (self.stuck or not again),
            folder=str(folder) if folder else None,
        )

    def take(self, answer: Answer) -> Trained:
        """The next epoch is trained."""
        record = answer.record(self.run.epoch + 1, self.left.pop(0))
        self.run = self.run.after(record)
        self.ended = self.run.workload.ends_with(record)
        self.killed = self.unstarted = 0
        counters.EPOCHS_TRAINED.inc()
        counters.TRAINING_SECONDS.inc(answer.seconds)
        return Trained(record, answer.seconds)

    @contextmanager
    def losses_counted(self) -> Generator[None]:
        """A lost executor ends the block, and the request only if it was not the first.

        Raises `WorkerLost`.
        """
        try:
            yield
        except NeverStarted:
            counters.WORKERS_LOST.inc()
            self.unstarted += 1
        except ExecutorLost:
            counters.WORKERS_LOST.inc()
            self.killed += 1
        if self.killed >= ATTEMPTS or self.unstarted >= STARTS:
            raise WorkerLost(
                f"{self.killed} workers were killed at one epoch, {self.unstarted} before they "
                "began"
            )


def _compare(before: EpochRecord, outcome: Outcome, run: Run) -> None:
    """Raises `SharedEpochMismatch`."""
    trained = record(before.epoch, before.plan, outcome)
    if trained != before:
        named = [
            name for name in (*METRICS, "window") if getattr(trained, name) != getattr(before, name)
        ]
        raise SharedEpochMismatch(
            f"epoch {before.epoch} of {run.workload.dataset}, seed {run.seed}, on the way to "
            f"{run.key}: trained again, it differs in {', '.join(named)}"
        )
