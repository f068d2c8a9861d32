"""Shared epochs: what any session or process trained before is known, and not trained again.

So is the grade of what any of them submitted before. Guarantees:
- What is known has the bits of what would have been trained: equal keys, equal bits. A sample of
  the known epochs can be trained all the same and compared.
- An epoch that several sessions ask for at the same time is trained once. When the one who trains
  it fails or goes away, one of those who wait takes over; whoever goes away while waiting returns
  at once, and disturbs nobody.
- Tensors are made only when somebody trains beyond what is known.
- Nobody is told but whoever reads `Trained`: budget, reward and observations are those of a real
  epoch.
"""

# pyright: strict

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import closing

from ml_trainer_env.server import counters
from ml_trainer_env.server.runs import Engine, Plan, Run
from ml_trainer_env.server.runtime.asking import Asker, patience
from ml_trainer_env.server.runtime.orders import outcome_of, record
from ml_trainer_env.server.runtime.records import Records
from ml_trainer_env.server.runtime.runner import Runner, SharedEpochMismatch, Trained


class SharingRunner:
    """`runner`, asked only for what `records` lacks.

    `verify` is the share of the known epochs, chosen by their keys, that are trained again and
    compared; a difference raises `SharedEpochMismatch`.
    """

    def __init__(self, runner: Runner, records: Records, verify: float = 0.0) -> None:
        self.runner = runner
        self.records = records
        self._verify = verify
        self._claims = _Claims()

    def engine(self) -> Engine:
        return self.runner.engine()

    def train(
        self, run: Run, plans: Sequence[Plan], asker: Asker | None = None
    ) -> Generator[Trained]:
        asker, left = asker or Asker(), list(plans)
        while left and not asker.gone():
            key = run.then(left[0])
            epoch = self._known(key, run, left[0])
            if epoch is not None:
                if self._is_in_the_sample(key):
                    self._verified(epoch, run, asker)
                counters.EPOCHS_SHARED.inc()
                epochs = iter((epoch,))
            elif self._claims_unknown(key):
                epochs = self._trained(key, run, list(left), asker)
            else:
                self._claims.wait(key, asker)
                continue
            began = run.epoch
            for each in epochs:
                run = run.after(each.record)
                del left[0]
                yield each
                if run.workload.ends_with(each.record):
                    return
            if epoch is None and run.epoch == began:  # called off
                return

    def test_accuracy(self, run: Run) -> float:
        """Asked for several times at once, it is graded once."""
        while True:
            known = self.records.get(run.key)
            if known is not None and known.test_accuracy is not None:
                counters.GRADES_SHARED.inc()
                return known.test_accuracy
            claim = f"grade of {run.key}"
            if self._claims.take(claim):
                try:
                    accuracy = self.runner.test_accuracy(run)
                    self.records.put_test_accuracy(run.key, accuracy)
                    return accuracy
                finally:
                    self._claims.release(claim)
            self._claims.wait(claim, Asker())

    def _known(self, key: str, run: Run, plan: Plan) -> Trained | None:
        known = self.records.get(key)
        if known is None:
            return None
        return Trained(record(run.epoch + 1, plan, known.outcome), known.seconds, shared=True)

    def _trained(
        self, claimed: str, run: Run, plans: list[Plan], asker: Asker
    ) -> Generator[Trained]:
        """Epochs that nobody has trained, up to the first that somebody has, or is training.

        The next one is claimed before the last one is told of, so that those who wait for it find
        it in good hands.
        """
        try:
            with closing(self.runner.train(run, plans, asker)) as epochs:
                for epoch, after in zip(epochs, [*plans[1:], None], strict=False):
                    self.records.put(claimed, outcome_of(epoch.record), epoch.seconds)
                    run = run.after(epoch.record)
                    goes_on = after is not None and not run.workload.ends_with(epoch.record)
                    following = run.then(after) if goes_on and after else ""
                    goes_on = goes_on and self._claims_unknown(following)
                    self._claims.release(claimed)
                    claimed = following if goes_on else ""
                    yield epoch
                    if not goes_on:
                        return
        finally:
            if claimed:
                self._claims.release(claimed)

    def _claims_unknown(self, key: str) -> bool:
        """Whether the epoch with this key is now ours to train."""
        if not self._claims.take(key):
            return False
        if self.records.get(key) is None:
            return True
        self._claims.release(key)
        return False

    def _is_in_the_sample(self, key: str) -> bool:
        return int(key[:8], 16) < self._verify * 2**32

    def _verified(self, known: Trained, run: Run, asker: Asker) -> None:
        """Train it again. Raises `SharedEpochMismatch`."""
        for trained in self.runner.train(run, [known.record.plan], asker):
            if trained.record != known.record:
                raise SharedEpochMismatch(
                    f"epoch {known.record.epoch} of {run.workload.dataset}, seed {run.seed}, on "
                    f"from {run.key}: trained again, it gave {trained.record}, and before "
                    f"{known.record}"
                )


class _Claims:
    """Who makes what: at most one maker for each key. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, Future[None]] = {}

    def take(self, key: str) -> bool:
        """Whether it is ours now."""
        with self._lock:
            if key in self._made:
                return False
            self._made[key] = Future()
            return True

    def release(self, key: str) -> None:
        """It is made, or given up; those who wait look again."""
        with self._lock:
            done = self._made.pop(key)
        done.set_result(None)

    def wait(self, key: str, asker: Asker) -> None:
        """Until it is made or given up, or the asker is gone."""
        done = self._made.get(key)
        if done is None:
            return
        woken = threading.Event()
        done.add_done_callback(lambda _: woken.set())
        with asker.bell.wakes(woken):
            while not done.done() and not asker.gone():
                woken.wait(patience(len(self._made)))
                woken.clear()
