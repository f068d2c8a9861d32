"""Everything that was measured: as tables beside the targets, and as one JSON object."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ml_trainer_env.benchmarks.engine.epochs import AUGMENTED, PLAIN, TaskFigures
from ml_trainer_env.benchmarks.engine.load import ALONE
from ml_trainer_env.benchmarks.timing import Spread

# Seconds, and a ratio. Stated for two cores, fp32, two threads, batch 64.
EPOCH_TARGETS = {"easy_mnist": 0.020, "medium_fashion": 0.35, "hard_cifar": 0.80}
AUGMENTATION_TARGET = 1.3  # times an epoch without
CALL_TARGETS = {"in_process": 0.002, "websocket": 0.004}
RESET_TARGET = 0.010
PLACES = {"in_process": "in process", "websocket": "over the WebSocket"}


@dataclass(frozen=True, slots=True)
class Machine:
    processor: str
    cores: int  # that this process may use
    torch: str
    precision: str = "fp32"


@dataclass(frozen=True, slots=True)
class Results:
    machine: Machine
    convolution_peak: float  # operations per second, on `engine_threads` threads
    engine_threads: int
    tasks: dict[str, TaskFigures]
    calls: dict[str, dict[str, Spread]]  # place -> what was called
    others: float | None  # share of the cores that other processes took; None: unknown
    quick: bool  # too few repetitions for figures to quote
    wall_seconds: float

    @property
    def disturbed(self) -> bool:
        """Other work ran beside it: the figures are not to be quoted."""
        return self.others is not None and self.others > ALONE


def call_target(place: str, what: str) -> float:
    """Seconds."""
    return RESET_TARGET if what.startswith("reset") else CALL_TARGETS[place]


def as_json(results: Results) -> dict[str, Any]:
    """Seconds everywhere, but for names that say otherwise."""
    return {
        "machine": asdict(results.machine),
        "quick": results.quick,
        "disturbed": results.disturbed,
        "others_share": None if results.others is None else _rounded(results.others),
        "engine_threads": results.engine_threads,
        "convolution_peak_gflops": round(results.convolution_peak / 1e9, 1),
        "tasks": {
            task_id: _task_json(task_id, figures, results)
            for task_id, figures in results.tasks.items()
        },
        "calls": {
            place: {
                what: {**_spread_json(spread), **_verdict(spread.median, call_target(place, what))}
                for what, spread in spreads.items()
            }
            for place, spreads in results.calls.items()
        },
        "wall_seconds": round(results.wall_seconds, 1),
    }


def _task_json(task_id: str, figures: TaskFigures, results: Results) -> dict[str, Any]:
    achieved = figures.operations_per_second("two_threads")
    return {
        "parameters": figures.parameters,
        "multiply_adds": figures.multiply_adds,
        "epoch": _verdict(figures.seconds["two_threads"].median, EPOCH_TARGETS[task_id]),
        "seconds": {name: _spread_json(spread) for name, spread in figures.seconds.items()},
        "augmentation_ratio": _verdict(
            figures.ratio("augmented", "two_threads"), AUGMENTATION_TARGET
        ),
        "one_thread_over_two": _rounded(figures.ratio("one_thread", "two_threads")),
        "usual_over_engine": _rounded(figures.times_usual(augmented=False)),
        "usual_over_engine_augmented": _rounded(figures.times_usual(augmented=True)),
        "gflops": round(achieved / 1e9, 1),
        "share_of_peak": _rounded(achieved / results.convolution_peak),
        "usual_gflops": round(_best_usual(figures) / 1e9, 1),
        "usual_threads": figures.usual_threads,
        "usual_collapsed": figures.collapsed,
        "val_accuracy": {
            "epoch": figures.accuracy_epoch,
            **{name: _rounded(value) for name, value in figures.val_accuracy.items()},
        },
    }


def _best_usual(figures: TaskFigures) -> float:
    return max(figures.operations_per_second(name) for name in PLAIN if name in figures.seconds)


def _spread_json(spread: Spread) -> dict[str, float]:
    return {name: _rounded(value) for name, value in asdict(spread).items()}


def _verdict(value: float, target: float) -> dict[str, Any]:
    return {"value": _rounded(value), "target": target, "met": value <= target}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}") if isinstance(value, float) else value


# --- Tables -------------------------------------------------------------------------------------


def show(results: Results, console: Console) -> None:
    machine = results.machine
    console.print(
        f"{machine.processor}, {machine.cores} cores, torch {machine.torch}, {machine.precision}"
    )
    if results.disturbed:
        console.print(
            f"[bold red]disturbed: other processes kept {results.others:.0%} of the cores busy; "
            "do not quote these figures[/]"
        )
    if results.quick:
        console.print("[yellow]a quick run: too few repetitions for figures to quote[/]")
    console.print(_epochs_table(results))
    console.print(_compared_table(results))
    console.print(_calls_table(results))


def _epochs_table(results: Results) -> Table:
    table = _table(
        "Seconds per epoch, evaluation included: adam, batch 64; median (quartiles)",
        *("task", f"{results.engine_threads} threads", "target"),
        *("1 thread", "augmented", "x", "target"),
    )
    for task_id, figures in results.tasks.items():
        seconds = figures.seconds
        epoch_target = EPOCH_TARGETS[task_id]
        ratio = figures.ratio("augmented", "two_threads")
        table.add_row(
            task_id,
            _judged(_shown(seconds["two_threads"]), seconds["two_threads"].median <= epoch_target),
            f"{epoch_target:g}",
            _shown(seconds["one_thread"]),
            _shown(seconds["augmented"]),
            _judged(f"{ratio:.2f}", ratio <= AUGMENTATION_TARGET),
            f"{AUGMENTATION_TARGET:g}",
        )
    return table


def _compared_table(results: Results) -> Table:
    peak = results.convolution_peak
    table = _table(
        "The same networks in the usual way, on torch's default threads and on one; "
        "x ours: the faster of them.\n"
        f"GFLOP/s: ours; convolutions peak at {peak / 1e9:.0f} here",
        *("task", "usual", "1 thread", "x ours", "augmented", "1 thread", "x ours"),
        *("GFLOP/s", "of peak", "val acc., ours / usual"),
    )
    for task_id, figures in results.tasks.items():
        achieved = figures.operations_per_second("two_threads")
        accuracy = figures.val_accuracy
        table.add_row(
            task_id,
            *(_usual_shown(figures, name) for name in PLAIN),
            f"{figures.times_usual(augmented=False):.1f}",
            *(_usual_shown(figures, name) for name in AUGMENTED),
            f"{figures.times_usual(augmented=True):.1f}",
            f"{achieved / 1e9:.1f}",
            f"{achieved / peak:.0%}",
            f"{accuracy['engine']:.3f} / {accuracy['usual']:.3f} @ {figures.accuracy_epoch}",
        )
    return table


def _calls_table(results: Results) -> Table:
    columns = [text for place in results.calls for text in (PLACES[place], "target")]
    table = _table("Without training, milliseconds: median (quartiles)", "call", *columns)
    for what in next(iter(results.calls.values())):
        cells: list[str] = []
        for place, spreads in results.calls.items():
            spread, target = spreads[what], call_target(place, what)
            cells += [_judged(_shown(spread, 1e3), spread.median <= target), f"{target * 1e3:g}"]
        table.add_row(what, *cells)
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(first, title=title, title_justify="left", title_style="bold")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _shown(spread: Spread, unit: float = 1.0) -> str:
    median, q1, q3 = (f"{unit * value:.3g}" for value in (spread.median, spread.q1, spread.q3))
    return f"{median} ({q1}..{q3})"


def _usual_shown(figures: TaskFigures, name: str) -> str:
    if name in figures.collapsed:
        return "collapsed"
    return f"{figures.seconds[name].median:.3g}"


def _judged(text: str, met: bool) -> str:
    return f"[green]{text}[/]" if met else f"[red]{text}[/]"
