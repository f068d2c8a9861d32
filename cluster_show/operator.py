"""What the program does about what it sees, as a careful operator would, so that the show goes on.

It knows what an agent would be told, and no more. It does little: a visitor came to see faults.
"""

from __future__ import annotations

from ml_trainer_env.events import ConfigureRanks, Event, Restore
from ml_trainer_env.server.cluster.training import Report

WORSE = 0.3  # nats, of the validation loss in one window


def answer(began: int, val_loss: float | None, report: Report) -> tuple[Event, str] | None:
    """What to do after a window that began at step `began` with `val_loss`, and why."""
    gone = tuple(each.rank for each in report.ranks if not each.alive)
    if gone and any("timed out" in incident for incident in report.incidents):
        ranks = ", ".join(map(str, gone))
        return ConfigureRanks(use_spare=gone), f"a spare host takes the place of rank {ranks}"
    # Nor the one that the job has just started from: its file may be what is wrong.
    event = Restore(step=max(0, min(began, report.step - 1)))
    back = "back to a checkpoint from before it"
    if report.skipped:
        return event, f"{report.skipped} updates were skipped: {back}"
    if val_loss is not None and report.val_loss > val_loss + WORSE:
        return event, f"the validation loss leapt: {back}"
    return None
