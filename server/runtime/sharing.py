"""Shared prefixes: an epoch that any session trained before is taken, not trained again.

So is the grade of a state that any session submitted before.

Guarantees:
- What is taken has the bits of what would have been trained: equal keys, equal bits. A sample of
  the taken epochs can be trained all the same and compared.
- An epoch that several sessions ask for at the same time is trained once. When the one who trains
  it fails or goes away, one of those who wait takes over; whoever goes away while waiting returns
  at once, and disturbs nobody.
- Nobody is told but the `Asker`: budget, reward and observations are those of a real epoch.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

import torch
from cachetools import LRUCache, cached

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server.runtime.asking import PATIENCE, Asker, CalledOff
from ml_trainer_env.server.runtime.runner import Runner
from ml_trainer_env.server.runtime.snapshots import SnapshotFolder, Snapshots
from ml_trainer_env.server.settings import Settings
from ml_trainer_env.server.trainer import TrainingState, next_key

_MB = 2**20
GRADES = 4096  # that are remembered: a key and a number each
Shared = Future[TrainingState | None]  # None: whoever trained it did not finish


def shared(runner: Runner, settings: Settings) -> Runner:
    """`runner` with its epochs shared, unless the settings say otherwise."""
    if not settings.sharing:
        return runner
    folder = None
    if settings.state_dir:
        folder = SnapshotFolder(settings.state_dir / "states", settings.state_mb * _MB)
    snapshots = Snapshots(settings.snapshot_mb * _MB, folder)
    return SharingRunner(runner, snapshots, settings.verify_shared)


class SharedEpochMismatch(AssertionError):
    """An epoch trained again did not give the bits that were stored: the engine broke its word."""


class SharingRunner:
    """`runner`, asked only for epochs that `snapshots` lacks.

    `verify` is the share of the taken epochs, chosen by their keys, that are trained again and
    compared; a difference raises `SharedEpochMismatch`.
    """

    def __init__(self, runner: Runner, snapshots: Snapshots, verify: float = 0.0) -> None:
        self._runner = runner
        self._snapshots = snapshots
        self._verify = verify
        self._lock = threading.Lock()
        self._in_progress: dict[str, Shared] = {}
        remembered = cached(
            LRUCache(GRADES), key=lambda state: state.key, condition=threading.Condition()
        )
        self._test_accuracy = remembered(runner.test_accuracy)

    def advance(
        self, state: TrainingState, plan: EpochPlan, asker: Asker | None = None
    ) -> TrainingState:
        asker = asker or Asker()
        key = next_key(state.key, plan)
        taken = None
        while taken is None:
            mine = Shared()
            with self._lock:
                first = self._in_progress.setdefault(key, mine)
            if first is not mine:
                taken = _wait(first, asker)
                continue
            after, was_stored = self._provide(mine, key, state, plan, asker)
            if not was_stored:
                return after
            taken = after
        if int(key[:8], 16) < self._verify * 2**32:
            _compare(taken, self._runner.advance(state, plan, asker))
        asker.shared += 1
        return taken

    def test_accuracy(self, state: TrainingState) -> float:
        return self._test_accuracy(state)

    def recall(self, key: str) -> TrainingState | None:
        return self._snapshots.get(key)

    def _provide(
        self, mine: Shared, key: str, state: TrainingState, plan: EpochPlan, asker: Asker
    ) -> tuple[TrainingState, bool]:
        """The epoch, and whether it was stored, for us and for all who wait for `mine`."""
        after = None
        try:
            after = self._snapshots.get(key)
            if after is not None:
                return after, True
            after = self._runner.advance(state, plan, asker)
            self._snapshots.put(after)
            return after, False
        finally:
            with self._lock:  # before they wake, so that one of them can take over
                del self._in_progress[key]
            mine.set_result(after)


def _wait(theirs: Shared, asker: Asker) -> TrainingState | None:
    """What comes of an epoch in progress elsewhere. Raises `CalledOff` when the asker is gone."""
    while True:
        try:
            return theirs.result(PATIENCE)
        except TimeoutError:
            if asker.gone():
                raise CalledOff("nobody waits for it any more") from None


def _compare(taken: TrainingState, trained: TrainingState) -> None:
    pairs = {
        "key": (taken.key, trained.key),
        "history": (taken.history, trained.history),
        "optimizer": (taken.optimizer, trained.optimizer),
        "steps": (taken.steps, trained.steps),
        "number of moments": (len(taken.moments), len(trained.moments)),
    }
    different = [name for name, (one, other) in pairs.items() if one != other]
    tensors = {
        "weights": (taken.current.weights, trained.current.weights),
        "statistics": (taken.current.statistics, trained.current.statistics),
        "best weights": (taken.best_checkpoint.weights, trained.best_checkpoint.weights),
        "best statistics": (taken.best_checkpoint.statistics, trained.best_checkpoint.statistics),
    }
    moments = zip(taken.moments, trained.moments, strict=False)
    tensors |= {f"moments {number}": pair for number, pair in enumerate(moments)}
    different += [name for name, pair in tensors.items() if not torch.equal(*pair)]
    if different:
        raise SharedEpochMismatch(
            f"epoch {taken.epoch} of {taken.workload.dataset}, seed {taken.seed}, key {taken.key}: "
            f"trained again, it differs in {', '.join(different)}"
        )
