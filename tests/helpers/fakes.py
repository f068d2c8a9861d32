"""A training that costs nothing: scripted epochs in the shape of the engine's.

The protocol's rules hold for any `Runner`, so they are tested with this one. What the real engine
does is tested elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence

from ml_trainer_env.models import EpochPlan, EpochRecord
from ml_trainer_env.server.runs import Engine, Plan, Run
from ml_trainer_env.server.runtime.asking import Asker
from ml_trainer_env.server.runtime.runner import Trained
from ml_trainer_env.server.session import process
from ml_trainer_env.server.tasks import Task

Metrics = tuple[float, float, float]  # val loss, val accuracy, generalisation gap
HIDDEN_TEST_ACCURACY = 0.8125

DIVERGED = None

ENGINE = Engine("fake", "fp32", {})


def learning(epoch: int, plan: EpochPlan) -> Metrics | None:
    """A well-behaved network; a learning rate of 10 diverges."""
    if plan.learning_rate >= 10:
        return DIVERGED
    return 2.0 / (epoch + 1), 1 - 0.6 / (epoch + 1), 0.02


def begin(task: Task, seed: int) -> Run:
    """The untrained run of this engine."""
    return process.begin(ENGINE, task, seed)


class FakeRunner:
    """Stands for the engine: `script(epoch, plan)` gives an epoch's metrics, None for a divergence.

    Close `gate` to hold every epoch at its start; `started` counts epochs that were begun, and
    `most_at_once` how many ever ran together.
    """

    def __init__(self, script: Callable[[int, EpochPlan], Metrics | None] = learning) -> None:
        self.script = script
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)
        self.advanced = 0
        self.most_at_once = 0
        self.tested = 0
        self._running = 0
        self._lock = threading.Lock()

    def engine(self) -> Engine:
        return ENGINE

    def train(
        self, run: Run, plans: Sequence[Plan], asker: Asker | None = None
    ) -> Generator[Trained]:
        asker = asker or Asker()
        for epoch, plan in enumerate(plans, run.epoch + 1):
            assert isinstance(plan, EpochPlan)
            if asker.gone():
                return
            trained = Trained(self._epoch(epoch, plan), 0.001)
            yield trained
            if trained.record.diverged:
                return

    def test_accuracy(self, run: Run) -> float:
        assert run.best is not None
        self.tested += 1
        return HIDDEN_TEST_ACCURACY

    def _epoch(self, epoch: int, plan: EpochPlan) -> EpochRecord:
        with self._lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        self.started.release()
        try:
            assert self.gate.wait(20), "the test never opened the gate"
            return _record(epoch, plan, self.script(epoch, plan))
        finally:
            with self._lock:
                self._running -= 1
                self.advanced += 1


class Steps:
    """A script of epochs that wait until they are let go, one by one."""

    def __init__(self) -> None:
        self._let_go = threading.Semaphore(0)

    def __call__(self, epoch: int, plan: EpochPlan) -> Metrics:
        assert self._let_go.acquire(timeout=60), "the test never let the epoch go"
        return 2.0 / (epoch + 1), 1 - 0.6 / (epoch + 1), 0.02

    def let_go(self, epochs: int = 1) -> None:
        self._let_go.release(epochs)


def _record(epoch: int, plan: EpochPlan, metrics: Metrics | None) -> EpochRecord:
    loss, accuracy, gap = metrics or (None, None, None)
    clean = None if accuracy is None or gap is None else accuracy + gap
    return EpochRecord(
        epoch=epoch,
        plan=plan,
        train_loss=loss,
        train_accuracy=accuracy,
        val_loss=loss,
        val_accuracy=accuracy,
        clean_train_loss=loss,
        clean_train_accuracy=clean,
    )
