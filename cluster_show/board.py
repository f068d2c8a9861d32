"""What is shown of a cluster: lines on its state, and a table of its ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import median

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ml_trainer_env.events import WINDOW, RankReport, WindowReport

BAR = WINDOW  # characters: one a step
SLOW = 1.3  # times the median


@dataclass(slots=True)
class Board:
    """Written to as a training goes on; `shown` draws it as it is now."""

    windows: int
    pids: Mapping[int, int] | None  # of hosts, where they are processes
    hosts: Sequence[int] = ()  # of the ranks
    window: int = 0
    steps: int = 0  # of this window
    loss: float | None = None  # of the last step
    train_loss: float | None = None  # of the last window
    val_loss: float | None = None
    report: WindowReport | None = None  # of the last event
    ranks: Sequence[RankReport] = ()
    shard_losses: Sequence[float | None] = field(default=())

    def shown(self) -> RenderableType:
        return Group(Text(), *self._lines(), self.ranks_shown())

    def ranks_shown(self) -> RenderableType:
        """The ranks and the data shards alone."""
        return Group(Padding(self._table(), (1, 0, 1, 1), expand=False), *self._data())

    def _lines(self) -> Iterator[Text]:
        seconds, step, checkpoints = 0.0, 0, tuple[int, ...]()
        if report := self.report:
            seconds, step, checkpoints = report.seconds, report.step, report.checkpoints
        done = "#" * self.steps + "." * (BAR - self.steps)
        yield Text.assemble(
            (" clock          ", "dim"),
            f"{seconds:7.1f} s    ",
            ("window ", "dim"),
            f"{self.window} of {self.windows}  ",
            (f"[{done}]", "blue"),
            f"  {self.steps} of {WINDOW} steps",
        )
        yield Text.assemble(
            (" step           ", "dim"),
            f"{step:7}      ",
            ("checkpoints ", "dim"),
            ", ".join(map(str, checkpoints)),
        )
        yield Text.assemble(
            (" loss           ", "dim"),
            f"{number(self.loss, 3):>7}      ",
            ("window ", "dim"),
            number(self.train_loss, 3),
            ("   validation ", "dim"),
            number(self.val_loss, 3),
        )

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1), show_edge=False)
        headings = ("rank", "host", *([] if self.pids is None else ["pid"]), "alive", "shards")
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "shards" else "right")
        for heading in ("step s", "grad norm", "agreement", "loss"):
            table.add_column(heading, justify="right", min_width=len("agreement"))
        seconds = [each.step_seconds for each in self.ranks if each.step_seconds]
        usual = median(seconds) if seconds else 0.0
        for rank, host in zip(self.ranks, self.hosts, strict=True):
            table.add_row(*self._row(rank, host, usual))
        return table

    def _row(self, rank: RankReport, host: int, usual: float) -> Iterator[Text]:
        yield Text(str(rank.rank))
        yield Text(str(host))
        if self.pids is not None:
            yield Text(str(self.pids.get(host, "-")))
        yield Text("yes") if rank.alive else Text("no", "bold red")
        yield Text(spans(rank.shards))
        late = (rank.step_seconds or 0.0) > SLOW * usual
        yield Text(number(rank.step_seconds, 2), "yellow" if late else "")
        yield Text(number(rank.gradient_norm, 3))
        against = (rank.agreement or 0.0) < 0
        yield Text(number(rank.agreement, 3), "bold red" if against else "")
        yield Text(number(rank.loss, 3))

    def _data(self) -> Iterator[Text]:
        """One line on the data shards: what they have in common is dull, so the extremes."""
        known = {n: loss for n, loss in enumerate(self.shard_losses) if loss is not None}
        if known:
            low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
            found = f"loss from {known[low]:.3f} on {low} to {known[high]:.3f} on {high}"
            yield Text.assemble((" data shards    ", "dim"), found)


def number(value: float | None, digits: int) -> str:
    """A dash for what is not there, or not finite."""
    return "-" if value is None else f"{value:.{digits}f}"


def spans(numbers: Sequence[int]) -> str:
    """0 to 3 and 7: `0-3, 7`."""
    found: list[str] = []
    for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [each for _, each in group]
        found.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(found) or "-"
