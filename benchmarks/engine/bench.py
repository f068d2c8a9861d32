"""The benchmark: seconds per epoch against the usual way of training, and overhead of a call.

`make bench` runs it, alone on the machine, in under 3 minutes on two cores; the last line of its
output is one JSON object. It asserts nothing: targets stand beside the figures.

    make bench ARGS='--quick --tasks easy_mnist'
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from ml_trainer_env.benchmarks.engine import calls, report
from ml_trainer_env.benchmarks.engine.epochs import Amount, UsualWay, measure
from ml_trainer_env.benchmarks.engine.flops import convolution_peak
from ml_trainer_env.benchmarks.engine.load import Load
from ml_trainer_env.server import trainer
from ml_trainer_env.server.engine.team import Team
from ml_trainer_env.server.runtime.cores import available
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.task_ids import CLASSIC_IDS
from ml_trainer_env.terminal import stdout

THREADS = 2
AMOUNTS = {
    "easy_mnist": Amount(blocks=3, engine=20, usual=3),
    "medium_fashion": Amount(blocks=3, engine=4, usual=1),
    "hard_cifar": Amount(blocks=3, engine=3, usual=1),
}
QUICK_AMOUNTS = {
    "easy_mnist": Amount(blocks=2, engine=5, usual=1),
    "medium_fashion": Amount(blocks=1, engine=2, usual=1),
    "hard_cifar": Amount(blocks=1, engine=2, usual=1),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make bench", description="Measure speed.")
    parser.add_argument(
        "--tasks", nargs="+", choices=CLASSIC_IDS, default=list(CLASSIC_IDS), help="default: all"
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions, to see that it runs")
    options = parser.parse_args(argv)
    # Piped output has no width of its own, and the usual guess of 80 breaks the tables.
    console = stdout(120, markup=True)
    results = run(tuple(dict.fromkeys(options.tasks)), options.quick, console)
    report.show(results, console)
    print(json.dumps(report.as_json(results), allow_nan=False))


def run(task_ids: Sequence[str], quick: bool, console: Console) -> report.Results:
    begin, before = time.perf_counter(), Load.now()
    cores = available()
    trainer.configure_process()  # as the server does
    team = Team(THREADS)
    amounts = QUICK_AMOUNTS if quick else AMOUNTS
    tasks = {}
    with UsualWay() as default, UsualWay(threads=1) as one_thread:
        for task_id in task_ids:
            with console.status(f"{task_id}: epochs, ours and the usual way"):
                tasks[task_id] = measure(
                    TASKS[task_id], amounts[task_id], team, default, one_thread
                )
    with console.status("the peak of convolutions"):
        peak = convolution_peak(team)
    team.close()
    with console.status("calls in process"):
        in_process = calls.in_process(task_ids)
    with console.status("calls over the WebSocket"):
        over_websocket = calls.over_websocket(task_ids)
    after = Load.now()
    return report.Results(
        machine=report.Machine(processor(), cores, torch.__version__),
        others=after.others_since(before, cores) if before and after else None,
        convolution_peak=peak,
        engine_threads=THREADS,
        tasks=tasks,
        calls={"in_process": in_process, "websocket": over_websocket},
        quick=quick,
        wall_seconds=time.perf_counter() - begin,
    )


def processor() -> str:
    """The processor's name, from where Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
