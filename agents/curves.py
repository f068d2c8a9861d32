"""The curves of an attempt, streamed to TensorBoard while it is played.

One run for each session below `folder`. Losses have a point for every epoch; what the environment
tells only of the last epoch of a call has a point for every call.
"""

# tensorboard has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from pathlib import Path

from tensorboard.summary import Writer

from ml_trainer_env.agents.records import Called, Ended, Line
from ml_trainer_env.models import TrainingStatus


class TensorBoardCurves:
    """An observer of an attempt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[int, Writer] = {}

    def __call__(self, line: Line) -> None:
        if isinstance(line, Called) and line.status is not None:
            self._add(self._writer(line.session), line.status)
        if isinstance(line, Ended):
            for writer in self._writers.values():
                writer.close()

    def _writer(self, session: int) -> Writer:
        if session not in self._writers:
            self._writers[session] = Writer(str(self._folder / f"session-{session}"))
        return self._writers[session]

    def _add(self, writer: Writer, status: TrainingStatus) -> None:
        last = status.current_epoch
        if status.epochs_run:
            for tag, losses in (
                ("loss/train", status.loss_history_last_10),
                ("loss/val", status.val_loss_history_last_10),
            ):
                known = losses[-status.epochs_run :]
                for epoch, loss in enumerate(known, last - len(known) + 1):
                    if loss is not None:
                        writer.add_scalar(tag, loss, step=epoch)
            config = status.current_config
            scalars = {
                "accuracy/train": status.train_accuracy,
                "accuracy/val": status.val_accuracy,
                "accuracy/best val": status.best_val_accuracy,
                "generalization gap": status.generalization_gap,
                "learning rate": config and config.learning_rate_in_force,
                "reward": status.reward,
            }
            for tag, value in scalars.items():
                if value is not None:
                    writer.add_scalar(tag, value, step=last)
        if status.grade is not None:
            writer.add_scalar("score", status.grade.score, step=last)
        writer.flush()
