"""The curves of an attempt, streamed to TensorBoard while it is played: one run for each session
below `folder`, with a point for every epoch.

An attempt that is played again, after an interruption say, replaces its curves.
"""

# tensorboard has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from pathlib import Path

from tensorboard.summary import Writer

from ml_trainer_env.agents.records import Called, Ended, Header, Line, Opened
from ml_trainer_env.models import EpochRecord, TrainingStatus

EVENTS = "*/events.out.tfevents.*"  # how TensorBoard finds its files


class TensorBoardCurves:
    """An observer of an attempt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[int, Writer] = {}

    def __call__(self, line: Line) -> None:
        if isinstance(line, Header):
            for left in self._folder.glob(EVENTS):
                left.unlink(missing_ok=True)
        elif isinstance(line, Opened):
            for report in line.epochs:  # of a run that is taken over
                _add_epoch(self._writer(line.session), report.record)
        elif isinstance(line, Called) and line.status is not None:
            writer = self._writer(line.session)
            for report in line.epochs:
                _add_epoch(writer, report.record)
            _add_status(writer, line.status)
            writer.flush()
        elif isinstance(line, Ended):
            for writer in self._writers.values():
                writer.close()

    def _writer(self, session: int) -> Writer:
        if session not in self._writers:
            self._writers[session] = Writer(str(self._folder / f"session-{session}"))
        return self._writers[session]


def _add_epoch(writer: Writer, record: EpochRecord) -> None:
    scalars = {
        "loss/train": record.train_loss,
        "loss/val": record.val_loss,
        "accuracy/train": record.train_accuracy,
        "accuracy/val": record.val_accuracy,
        "generalization gap": record.gap,
        "learning rate": record.learning_rate,
    }
    _add(writer, scalars, record.epoch)


def _add_status(writer: Writer, status: TrainingStatus) -> None:
    trained = {"accuracy/best val": status.best_val_accuracy, "reward": status.reward}
    graded = {"score": status.grade and status.grade.score}
    _add(writer, (trained if status.epochs_run else {}) | graded, status.current_epoch)


def _add(writer: Writer, scalars: dict[str, float | None], epoch: int) -> None:
    for tag, value in scalars.items():
        if value is not None:
            writer.add_scalar(tag, value, step=epoch)
