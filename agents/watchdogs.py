"""The watchdogs that large jobs have, as operators of a cluster.

Both see what any operator sees, window by window. The first one's rules are those of the field: a
spike of the loss or of the gradient norm that the validation loss shows, too, is left by going back
and reading past it (PaLM, 2022), who is much slower than the others twice in a row is replaced, as
is who does not answer, and once somebody was lost checkpoints are as often as Young (1974) has
them. The careful one also looks at what ranks and data shards say of themselves, and before it acts
it asks: a replay tells the data from a host, a checksum who is out of step, the recorder who was
lost before, and a checkpoint is verified before it is trusted.
"""

from __future__ import annotations

import math

from ml_trainer_env.agents.attempt import Attempt, Trial
from ml_trainer_env.agents.watching import (
    Watch,
    absent,
    attempted,
    goes_on,
    has_risen,
    is_worse,
    seen_of,
    slowest,
    striking,
    submit,
    suspect,
)
from ml_trainer_env.cluster_status import ClusterStatus

WRITING = 0.4  # seconds, of a checkpoint
LASTING = 3  # steps far above the usual: one alone is the data's, and heals
WRONG = 1.5  # times the rate that was set
ENOUGH = 10  # steps of a window, for the losses of data shards to say something
SKIPPED = 5  # updates of a window that were not finite
PATIENCE = 3  # windows after an act, before the next


def watchdog(attempt: Attempt) -> None:
    """Acts on spikes, silence and slowness."""
    trial = attempt.begin()
    watch, slow, lost = Watch(LASTING), None, 0
    while goes_on(trial):
        seen = seen_of(trial.run(1))
        before, slow = slow, slowest(seen)
        if crashes := sum(each.endswith("was lost") for each in seen.incidents):
            lost += crashes
            attempted(trial, "configure_training", checkpoint_every=_cadence(seen, lost))
        if gone := absent(seen):
            attempted(trial, "configure_ranks", use_spare=gone)
        elif slow is not None and slow == before:
            attempted(trial, "configure_ranks", use_spare=[slow])
        elif watch.jumped(seen) and is_worse(seen):
            _go_past(trial, seen, windows=1)
            watch = Watch(LASTING)
    submit(trial)


def careful(attempt: Attempt) -> None:
    """Finds out before it acts, and waits to see what comes of it."""
    trial = attempt.begin()
    doctor = _Careful(trial)
    while goes_on(trial):
        trial.run(1)
        doctor.looks()
    submit(trial)


class _Careful:
    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._watch = Watch()
        self._rate = seen_of(trial.status).config.learning_rate
        self._lost: list[str] = []
        self._spared: list[int] = []
        self._waits = 0

    def looks(self) -> None:
        seen = seen_of(self._trial.status)
        jumped = self._watch.jumped(seen)
        self._waits = max(0, self._waits - 1)
        acted = (
            self._who_is_gone(seen)
            or self._what_was_moved(seen)
            or (not self._waits and self._who_is_slow(seen))
            or (not self._waits and self._what_is_wrong(seen, jumped))
        )
        if acted:
            self._waits, self._watch = PATIENCE, Watch()

    def _who_is_gone(self, seen: ClusterStatus) -> bool:
        """Who does not answer, and who was lost for the second time."""
        lost = [each for each in seen.incidents if each.endswith("was lost")]
        again = [each for each in lost if each in self._lost]
        self._lost += lost
        gone = {*absent(seen), *(int(each.split()[1]) for each in again)}
        return bool(gone) and self._does("configure_ranks", use_spare=sorted(gone))

    def _what_was_moved(self, seen: ClusterStatus) -> bool:
        """A job that was moved has started from a checkpoint: was it whole, is the rate right?"""
        if not any("moved" in each for each in seen.incidents):
            return False
        found = self._asks("verify_checkpoint")
        whole = [int(each.split()[1][:-1]) for each in found if each.endswith("whole")]
        if any(each.endswith("damaged") for each in found) and whole:
            return self._does("restore_checkpoint", step=max(whole))
        return False

    def _who_is_slow(self, seen: ClusterStatus) -> bool:
        """A spare; where that does not help it is the work, and that stays."""
        slow = slowest(seen)
        if slow is None or slow in self._spared:
            return False
        self._spared.append(slow)
        return self._does("configure_ranks", use_spare=[slow])

    def _what_is_wrong(self, seen: ClusterStatus, jumped: bool) -> bool:
        last = seen.windows[-1]
        if last.skipped >= SKIPPED:
            return self._goes_back(seen, windows=1)
        if last.learning_rate and last.learning_rate > WRONG * self._usual_rate(seen):
            self._does("configure_training", learning_rate=self._rate)
            return self._goes_back(seen, windows=1)
        rank = suspect(last.ranks)
        shards = striking(last) if len(seen.losses) >= ENOUGH else []
        if rank is not None and self._differs():
            self._does("configure_ranks", use_spare=[rank])
            return self._goes_back(seen, windows=1)
        if shards:
            return self._does("configure_data", quarantine_shards=shards)
        if jumped and is_worse(seen) and not self._differs():
            _go_past(self._trial, seen, windows=1)
            return True
        return has_risen(seen) and self._after_a_rise(seen)

    def _after_a_rise(self, seen: ClusterStatus) -> bool:
        """Who is out of step is brought back; else the order of the data is what is left."""
        if len({each.split()[-1] for each in self._asks("weight_checksum")}) > 1:
            return self._does("configure_ranks")
        return self._does("configure_data", reshuffle=True)

    def _usual_rate(self, seen: ClusterStatus) -> float:
        """A cosine from the rate that was set to a twentieth of it, over the clock."""
        part = min(1.0, seen.seconds / seen.deadline)
        return self._rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * part)))

    def _differs(self) -> bool:
        return any("differ" in each for each in self._asks("replay")[-1:])

    def _asks(self, kind: str) -> tuple[str, ...]:
        status = attempted(self._trial, "run_diagnostic", kind=kind)
        return seen_of(status).finding if status else ()

    def _does(self, tool: str, **arguments: object) -> bool:
        return attempted(self._trial, tool, **arguments) is not None

    def _goes_back(self, seen: ClusterStatus, windows: int) -> bool:
        return self._does("restore_checkpoint", step=_before(seen, windows))


def _cadence(seen: ClusterStatus, lost: int) -> int:
    """Steps between two checkpoints as Young (1974) has them, by the failures so far."""
    seconds = math.sqrt(2 * WRITING * seen.seconds / lost)
    return max(5, round(seconds * seen.step / seen.seconds))


def _before(seen: ClusterStatus, windows: int) -> int:
    """The step of the latest checkpoint before the last windows; the oldest, if there is none."""
    earlier = [0, *(each.step for each in seen.windows)][-1 - windows]
    return max((each for each in seen.checkpoints if each <= earlier), default=seen.checkpoints[0])


def _go_past(trial: Trial, seen: ClusterStatus, windows: int) -> None:
    """Before the window, and past what it has read."""
    back = _before(seen, windows)
    attempted(trial, "restore_checkpoint", step=back, skip_batches=max(0, seen.step - back))
