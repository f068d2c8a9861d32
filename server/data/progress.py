"""Say what a long preparation is doing: a live bar on a terminal, one line a step elsewhere.

Everything goes to stderr, so stdout stays free for results. No state, nothing at import.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_MEGABYTE = 1_000_000


class Reached(Protocol):
    """Called as a step moves on: bytes done, and in all (0: unknown; an estimate will do)."""

    def __call__(self, done: int, total: int = 0) -> None: ...


def note(text: str) -> None:
    """One line on stderr."""
    from ml_trainer_env.terminal import stderr

    stderr().print(text, markup=False, soft_wrap=True)


@contextmanager
def step(text: str) -> Iterator[Reached]:
    """Show one step while the block runs; the block may call what is yielded, or not."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ml_trainer_env.terminal import stderr

    console = stderr()
    if not console.is_terminal:
        note(text)
        yield lambda done, total=0: None
        return

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(text, total=None, amount="")

        def reached(done: int, total: int = 0) -> None:
            done = min(done, total or done)
            of = f"/{total / _MEGABYTE:.0f}" if total else ""
            amount = f"{done / _MEGABYTE:.0f}{of} MB"
            progress.update(task, completed=done, total=total or None, amount=amount)

        yield reached
        progress.update(task, total=1, completed=1)  # a finished step shows a full bar
