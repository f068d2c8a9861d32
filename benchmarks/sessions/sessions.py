"""Many sessions: throughput against plain processes, sharing, forks, memory. `make bench-sessions`.

Alone on the machine, about 10 minutes on two cores; the last line of output is one JSON object.
What is compared alternates within the run. It asserts nothing: targets stand beside the figures.

    make bench-sessions ARGS='--quick --tasks easy_mnist'
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ml_trainer_env.benchmarks.sessions import server
from ml_trainer_env.benchmarks.sessions.crowd import CONFIGURE, Crowd, Side, run
from ml_trainer_env.benchmarks.timing import Spread, seconds_of
from ml_trainer_env.server.ml_trainer_environment import MLTrainerEnvironment
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.pool import Pool
from ml_trainer_env.server.runtime.records import NAME, Records
from ml_trainer_env.server.runtime.runner import Runner, SliceRunner
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.session.saved import SavedEpisodes
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.task_ids import CLASSIC_IDS, TaskId
from ml_trainer_env.terminal import stdout

MB = 2**20
BUDGET = 1024 * MB  # of states, the server's default
CORES = 2
FEW, MANY = 8, 64  # sessions
THROUGHPUT_TARGET = 0.97
SHARING_TARGET, IDENTICAL_TARGET = 1.6, 1.05
FORK_TARGET, IDLE_TARGET = 0.020, 8.0  # seconds, MB
SERVER_TARGETS = {
    "seconds_to_health": 2.0,
    "server_ms_easy_mnist": 0.4,
    "server_ms_hard_cifar": 0.4,
    "mb_idle": 200.0,
    "mb_512_sessions": 400.0,
}


@dataclass(frozen=True, slots=True)
class Amount:
    """Epochs of each session, or process, in one repetition."""

    few: int
    many: int
    plain: int
    threads: int
    groups: int = 0  # repetitions; they are not measured for every task
    calls: int = 1  # of so many epochs: the last slices of a crowd leave cores idle


AMOUNTS: dict[TaskId, Amount] = {
    "easy_mnist": Amount(few=20, many=5, plain=240, threads=2, groups=9, calls=3),
    "medium_fashion": Amount(few=4, many=1, plain=12, threads=1, groups=3),
    "hard_cifar": Amount(few=2, many=1, plain=8, threads=1),
}

_seeds = itertools.count(1)  # never the same twice: nothing is shared by accident


@contextmanager
def serving(*, sharing: bool = True) -> Iterator[Runner]:
    """The server's own runner, its workers warm."""
    with workers() as pool:
        runner = SliceRunner(pool, Cores(2, CORES), States(BUDGET))
        yield SharingRunner(runner, Records()) if sharing else runner


@contextmanager
def workers() -> Iterator[Pool]:
    """Warm."""
    pool = Pool(CORES)
    pool.prepare(TASKS[task_id].workload.dataset for task_id in CLASSIC_IDS)
    yield pool
    pool.close()


def fresh(count: int) -> list[int]:
    return list(itertools.islice(_seeds, count))


def crowd_rate(
    runner: Runner, task_id: TaskId, sessions: int, epochs: int, calls: int = 1
) -> float:
    """Epochs per second of that many sessions, all of different seeds."""
    crowd = Crowd(runner, task_id, fresh(sessions))
    crowd.play([[CONFIGURE]] * sessions)
    seconds = crowd.play([[run(epochs)] * calls] * sessions)
    crowd.close()
    return sessions * epochs * calls / seconds


def throughput(task_id: TaskId, repetitions: int) -> dict[str, Any]:
    """Epochs per second: plain processes, few and many sessions, threads in the usual way."""
    amount, rates = AMOUNTS[task_id], dict[str, list[float]]()

    def note(name: str, rate: float) -> None:
        rates.setdefault(name, []).append(rate)

    with serving() as runner, Side("engine", task_id, range(CORES)) as plain:
        crowd_rate(runner, task_id, FEW, 1)
        for _ in range(repetitions):
            for name, sessions, epochs in (("few", FEW, amount.few), ("many", MANY, amount.many)):
                note("plain", CORES * amount.plain / plain.train(amount.plain))
                note(name, crowd_rate(runner, task_id, sessions, epochs, amount.calls))
    with Side("threads", task_id, [FEW]) as usual:
        for _ in range(min(2, repetitions)):
            note("threads", FEW * amount.threads / usual.train(amount.threads))
    return {
        "epochs_per_second": {name: spread(values) for name, values in rates.items()},
        "few_over_plain": judged(ratios(rates["few"], rates["plain"][::2]), THROUGHPUT_TARGET),
        "many_over_plain": judged(ratios(rates["many"], rates["plain"][1::2]), THROUGHPUT_TARGET),
        "few_over_threads": statistics.median(rates["few"]) / statistics.median(rates["threads"]),
    }


def group(task_id: TaskId, repetitions: int) -> dict[str, Any]:
    """A group that starts alike, then parts: seconds with sharing and without."""
    branches = [
        [CONFIGURE, run(10), ("adjust_learning_rate", {"new_lr": 0.0005 * (k + 1)}), run(10)]
        for k in range(FEW)
    ]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(repetitions):
        for sharing in (False, True):
            with serving(sharing=sharing) as runner:
                crowd_rate(runner, task_id, CORES, 2)  # warm
                crowd = Crowd(runner, task_id, fresh(1) * FEW)
                seconds[sharing].append(crowd.play(branches))
                crowd.close()
    return {
        "seconds_shared": spread(seconds[True]),
        "seconds_unshared": spread(seconds[False]),
        "gain": judged(ratios(seconds[False], seconds[True]), SHARING_TARGET),
    }


def identical(task_id: TaskId, repetitions: int) -> dict[str, Any]:
    """Identical episodes, all at once, against one alone."""
    episode = [CONFIGURE, run(20), ("submit_model", {})]
    seconds: dict[int, list[float]] = {1: [], FEW: []}
    with serving() as runner:
        crowd_rate(runner, task_id, CORES, 2)
        for _ in range(repetitions):
            for count, taken in seconds.items():
                crowd = Crowd(runner, task_id, fresh(1) * count)
                taken.append(crowd.play([episode] * count))
                crowd.close()
    return {
        "seconds_one": spread(seconds[1]),
        "seconds_eight": spread(seconds[FEW]),
        "cost": judged(ratios(seconds[FEW], seconds[1]), IDENTICAL_TARGET, at_most=True),
    }


def forks(repetitions: int) -> dict[str, Any]:
    """Seconds of a fork of a trained hard session, and of its resumption by another process."""
    taken: dict[str, list[float]] = {"fork": [], "resume": []}
    with tempfile.TemporaryDirectory() as name, workers() as pool:
        folder = Path(name)

        def server() -> tuple[Runner, SavedEpisodes]:
            """What a server holds that has just started over this folder."""
            runner = SliceRunner(pool, Cores(2, CORES), States(4 * BUDGET, folder / "states"))
            records = Records(folder / NAME)
            return SharingRunner(runner, records), SavedEpisodes(folder / "episodes")

        runner, saved = server()
        parent = Crowd(runner, "hard_cifar", fresh(1), saved)
        parent.play([[CONFIGURE, run(3)]])
        (key,) = parent.keys
        for _ in range(repetitions):
            child = MLTrainerEnvironment(runner, saved=saved)
            taken["fork"].append(seconds_of(lambda c=child: c.reset(fork_of=key)))
            child.close()
            runner_of_the_next, saved_by_the_next = server()
            again = MLTrainerEnvironment(runner_of_the_next, saved=saved_by_the_next)
            resume: Callable[[], object] = lambda a=again: a.reset(  # noqa: E731
                resume=key
            )
            taken["resume"].append(seconds_of(resume))
            again.close()
        parent.close()
    return {name: judged(values, FORK_TARGET, at_most=True) for name, values in taken.items()}


def idle(count: int) -> dict[str, Any]:
    """MB of the server's own memory that one more idle, trained hard session takes."""
    with serving(sharing=False) as runner:
        crowds = [Crowd(runner, "hard_cifar", fresh(count))]
        crowds[0].play([[CONFIGURE, run(1)]] * count)  # fills what was freed before
        before = resident_bytes()
        crowds.append(Crowd(runner, "hard_cifar", fresh(count)))
        crowds[1].play([[CONFIGURE, run(1)]] * count)
        each = (resident_bytes() - before) / count / MB
        for crowd in crowds:
            crowd.close()
    return judged([each], IDLE_TARGET, at_most=True)


def server_figures(repetitions: int, calls: Sequence[int]) -> dict[str, Any]:
    """Of the server's own process."""
    found = server.measure(repetitions, calls)
    holds_torch = any(found.pop("torch"))
    judgements = {
        name: judged(values, SERVER_TARGETS[name], at_most=True) for name, values in found.items()
    }
    return {"holds_torch": holds_torch, **judgements}


def resident_bytes() -> int:
    gc.collect()
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process its memory")


def spread(values: Sequence[float]) -> dict[str, float]:
    each = Spread.of(values)
    return {"median": each.median, "minimum": each.minimum, "maximum": each.maximum}


def ratios(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """Of pairs measured one right after the other, so that the machine's drift falls out."""
    return [one / other for one, other in zip(ones, others, strict=True)]


def judged(values: Sequence[float], target: float, *, at_most: bool = False) -> dict[str, Any]:
    """By the median."""
    value = statistics.median(values)
    met = value <= target if at_most else value >= target
    return {"value": value, "target": target, "met": met, "spread": spread(values)}


def measure(task_ids: Sequence[TaskId], quick: bool, console: Console) -> dict[str, Any]:
    repetitions = 1 if quick else 3
    results: dict[str, Any] = {"quick": quick, "tasks": {}}
    with console.status("memory"):  # first: later, sessions would lie in what others have freed
        results["idle_session"] = idle(count=4 if quick else 16)
    for task_id in task_ids:
        with console.status(f"{task_id}: throughput"):
            results["tasks"][task_id] = throughput(task_id, repetitions)
    grouped: list[TaskId] = [task_id for task_id in task_ids if AMOUNTS[task_id].groups]
    for task_id in grouped[:1] if quick else grouped:
        groups = 1 if quick else AMOUNTS[task_id].groups
        with console.status(f"{task_id}: groups"):
            results["tasks"][task_id]["group"] = group(task_id, groups)
            results["tasks"][task_id]["identical"] = identical(task_id, groups)
    with console.status("the server's process"):
        results["server"] = server_figures(repetitions, (2, 1) if quick else (5, 5))
    with console.status("forks"):
        results |= forks(repetitions=5 if quick else 20)
    return results


def show(results: dict[str, Any], console: Console) -> None:
    table = Table("figure", "median", "target", "met", title="Many sessions on two cores")

    def row(name: str, figure: dict[str, Any], unit: str = "") -> None:
        met = "yes" if figure["met"] else "[bold]no[/bold]"
        table.add_row(name, f"{figure['value']:.3g}{unit}", f"{figure['target']:g}{unit}", met)

    for task_id, each in results["tasks"].items():
        row(f"{task_id}: {FEW} sessions over two processes", each["few_over_plain"])
        row(f"{task_id}: {MANY} sessions over two processes", each["many_over_plain"])
        rates = {name: f"{r['median']:.3g}" for name, r in each["epochs_per_second"].items()}
        table.add_row(f"{task_id}: epochs/s", str(rates), "", "")
        table.add_row(
            f"{task_id}: {FEW} sessions over {FEW} usual threads",
            f"{each['few_over_threads']:.3g}",
            "",
            "",
        )
        if "group" in each:
            row(f"{task_id}: a group of {FEW}, sharing on over off", each["group"]["gain"])
            row(f"{task_id}: {FEW} identical episodes over one", each["identical"]["cost"])
    for name in ("fork", "resume"):
        row(f"{name} of a hard session", results[name], " s")
    for name, figure in results["server"].items():
        if name != "holds_torch":
            row(f"server: {name}", figure)
    row("one more idle hard session", results["idle_session"], " MB")
    console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make bench-sessions", description="Many sessions.")
    parser.add_argument("--tasks", nargs="+", choices=CLASSIC_IDS, default=list(CLASSIC_IDS))
    parser.add_argument("--quick", action="store_true", help="once each, to see that it runs")
    options = parser.parse_args(argv)
    console = stdout(120, markup=True)
    begin = time.perf_counter()
    results = measure(options.tasks, options.quick, console)
    results["wall_seconds"] = time.perf_counter() - begin
    show(results, console)
    print(json.dumps(results, allow_nan=False))


if __name__ == "__main__":
    main()
