"""What an evaluation shows while it runs: a bar for all attempts, and one for each in progress."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console

from ml_trainer_env.agents.attempt import Observer
from ml_trainer_env.agents.records import Called, Ended, Header, Line


class Progress:
    """Bars on a terminal; elsewhere a line for every attempt that has ended. Thread-safe."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        """`done` of `total` attempts are on record already."""
        self._console = console
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[told]}", markup=False),
            bars.TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._all = self._bars.add_task("attempts", total=total, completed=done, told="")

    @contextmanager
    def shown(self) -> Generator[None, None, None]:
        with self._bars:
            yield

    def found(self, name: str) -> None:
        """An attempt that was to be played is on record by now."""
        self._bars.advance(self._all)
        self._console.print(f"{name}: played by another evaluation")

    @contextmanager
    def attempt(self, name: str) -> Generator[Observer, None, None]:
        """An observer that moves the bar of an attempt, in epochs."""
        bar = self._bars.add_task(name, total=None, told="")

        def observe(line: Line) -> None:
            if isinstance(line, Header):
                self._bars.update(bar, total=line.max_epochs)
            elif isinstance(line, Called) and line.status is not None:
                best = line.status.best_val_accuracy
                told = "" if best is None else f"best val {best:.1%}"
                self._bars.update(bar, advance=line.status.epochs_run, told=told)
            elif isinstance(line, Ended):
                score = f"score {line.grade.score:.3f}, {line.epochs} epochs, {line.seconds:.0f} s"
                self._bars.advance(self._all)
                self._console.print(f"{name}: {score}")

        try:
            yield observe
        finally:
            self._bars.remove_task(bar)
