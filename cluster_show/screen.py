"""A live board with lines above it on a terminal; elsewhere lines, and the ranks of each window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ml_trainer_env.cluster_show.board import Board, number
from ml_trainer_env.events import RankReport
from ml_trainer_env.server.cluster.training import Report


class Screen:
    """Use it as a context. What was written stays when it closes."""

    def __init__(self, console: Console, windows: int, *, processes: bool) -> None:
        self._console = console
        self.board = Board(windows, {} if processes else None)
        self.steps_ever = 0
        live = console.is_terminal and not console.is_dumb_terminal
        # Drawn anew when there is news, and by no thread: the processes have the cores.
        self._live = Live(console=console, auto_refresh=False) if live else None

    def __enter__(self) -> Screen:
        if self._live:
            self._live.__enter__()
        self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def say(self, line: str, style: str = "") -> None:
        """One line, with where the training was then."""
        where = f" window {self.board.window}, step {self.board.steps:<2}  "
        self._console.print(Text.assemble((where, "dim"), (line, style)), soft_wrap=True)

    def window(self, hosts: Sequence[int], ranks: Sequence[RankReport]) -> None:
        """Another one begins, with these."""
        board = self.board
        board.window, board.steps, board.hosts = board.window + 1, 0, hosts
        board.ranks = board.ranks or ranks
        self._draw()

    def step(self, loss: float | None, ranks: Sequence[RankReport]) -> None:
        """What a window has shown up to this step. Seconds are known at its end: the last ones."""
        self.steps_ever += 1
        board = self.board
        board.steps, board.loss = board.steps + 1, loss
        seconds = {each.rank: each.step_seconds for each in board.ranks}
        board.ranks = [
            each.model_copy(update={"step_seconds": seconds.get(each.rank)}) for each in ranks
        ]
        self._draw()

    def processes(self, pids: Mapping[int, int]) -> None:
        """These play the hosts from here on."""
        if self.board.pids is not None:
            self.board.pids = dict(pids)
            self._draw()

    def trained(self, hosts: Sequence[int], report: Report, took: float) -> None:
        """A window is over: its incidents, a line on it, and without a live board its ranks."""
        board = self.board
        board.train_loss, board.shard_losses = report.train_loss, report.shard_losses
        self.changed(hosts, report)
        losses = f"loss {number(report.train_loss, 3)}, validation {number(report.val_loss, 3)}"
        clocks = f"clock {report.seconds:.1f} s, real {took:.1f} s"
        steps = "1 step" if len(report.losses) == 1 else f"{len(report.losses)} steps"
        told = f"{steps}, {losses}; {clocks}"
        self.say(told, "green")
        if not self._live:
            self._console.print(board.ranks_shown(), Text())

    def changed(self, hosts: Sequence[int], report: Report) -> None:
        """What came of an event, and who plays the ranks after it."""
        for incident in report.incidents:
            self.say(incident, "bold yellow")
        board = self.board
        board.report, board.hosts, board.ranks = report, hosts, report.ranks
        board.val_loss = report.val_loss
        self._draw()

    def _draw(self) -> None:
        if self._live:
            self._live.update(self.board.shown(), refresh=True)
