"""A table of ended attempts, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ml_trainer_env.agents.records import Ended

_COLUMNS = ("score", "val", "hidden", "gap", "epochs", "calls", "errors", "return", "time")


def summary(attempts: Sequence[Ended]) -> Table:
    """One row an attempt."""
    table = Table(title="Summary", title_justify="left")
    table.add_column("task", no_wrap=True)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for ended in attempts:
        grade = ended.grade
        table.add_row(
            grade.task_id,
            f"{grade.score:.4f}",
            percent(grade.val_accuracy),
            percent(grade.hidden_test_accuracy),
            percent(grade.generalization_gap),
            f"{ended.epochs}",
            f"{ended.calls}",
            f"{ended.errors}",
            f"{ended.episode_return:+.4f}",
            f"{ended.seconds:.1f} s",
        )
    return table


def percent(share: float | None) -> str:
    """`0.975` as `97.5%`."""
    return "-" if share is None else f"{share:.1%}"
