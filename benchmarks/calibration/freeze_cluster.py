"""Train the counterfactuals of the cluster's instances, and keep them: `make freeze-cluster`.

    make freeze-cluster ARGS='--splits eval validation --processes 2'    # goes on where it was

Of each instance the run in which nobody does anything, and one for each remedy. An instance whose
best remedy does not gain what its kind promises is none, and the next candidate is. The healthy
runs come first: all is told in their steps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from statistics import fmean, stdev
from typing import Any

import torch
from rich.table import Table

from ml_trainer_env import frozen
from ml_trainer_env.benchmarks.calibration.cluster_runs import Played, finished, loss, until
from ml_trainer_env.events import ConfigureData, ConfigureRanks, Event, Restore, Settings
from ml_trainer_env.frozen import Act, Forked, Healthy
from ml_trainer_env.server.cluster.training import advance
from ml_trainer_env.server.counterfactuals import Counterfactuals, healthy_steps, known
from ml_trainer_env.server.incidents import (
    FAULTS,
    NETWORK,
    QUIET,
    STEP_SECONDS,
    STEPS,
    Incident,
    Scheduled,
    incident,
)
from ml_trainer_env.server.worlds import World
from ml_trainer_env.task_ids import CLUSTER, SPLITS, InstanceId, instances
from ml_trainer_env.terminal import stdout

DEADLINES = (50, 100, 150, 200, 250, 300, 350, 400, 450, 500, 550, 600, 700)  # steps
RUNS = 3  # healthy ones, of each deadline
REDRAWS = 6
MOST_CANDIDATES = 20
HEALTHY = frozen.FOLDER / "cluster_healthy.json"


def healthy_world(run: int, steps: int) -> World:
    return World(f"healthy {run}", NETWORK, 4, round(steps * STEP_SECONDS[4], 1))


def measure_healthy() -> Healthy:
    """The curve by which losses are told in steps, and what a redraw of the data's order does."""
    losses = [
        fmean(_loss_of(healthy_world(run, steps)) for run in range(RUNS)) for steps in DEADLINES
    ]
    of = healthy_world(0, STEPS)
    state = until(of, of.deadline / 2).state
    ends: list[float] = []
    for _ in range(REDRAWS):
        state, _ = advance(of, 0, state, ConfigureData(reshuffle=True))
        state = replace(state, seconds=of.deadline / 2)  # the redraws alone are to differ
        ends.append(loss(of, finished(of, Played(state))))
    pace = (DEADLINES[-1] - DEADLINES[-3]) / (losses[-3] - losses[-1])  # steps a nat, at the end
    return Healthy(steps=DEADLINES, losses=tuple(losses), spread=stdev(ends) * pace)


def _loss_of(world: World) -> float:
    return loss(world, finished(world))


def forked(of: InstanceId) -> Forked:
    """The line of the first candidate that keeps what its kind promises."""
    for number in count():
        found = incident(of, number)
        line = _line(of, number, found)
        if _keeps(found, known(line)):
            return line
        if number == MOST_CANDIDATES:
            raise RuntimeError(f"{of}: none of {number} candidates is worth what its kind promises")
    raise AssertionError


def _line(of: InstanceId, number: int, found: Incident) -> Forked:
    world = found.world
    first = min((each.since for remedy in found.remedies for each in remedy), default=0.0)
    before = until(world, first)
    nothing = finished(world, before)
    runs = [finished(world, before, remedy) for remedy in found.remedies]
    losses = [loss(world, each) for each in runs]
    best = min(range(len(runs)), key=losses.__getitem__, default=None)
    if best is not None and losses[best] >= loss(world, nothing):
        best = None
    return Forked(
        split=of.split,
        index=of.index,
        candidate=number,
        nothing=loss(world, nothing),
        remedies=tuple(losses),
        best=() if best is None else _acts(found.remedies[best]),
        curve=nothing.curve,
        best_curve=() if best is None else runs[best].curve,
    )


def _acts(remedy: Sequence[Scheduled]) -> tuple[Act, ...]:
    """As an agent would do it, by tools."""
    return tuple(
        Act(since=each.since, tool=tool, arguments=arguments)
        for each in remedy
        for tool, arguments in map(_call, each.does)
    )


def _call(event: Event | Settings) -> tuple[str, dict[str, Any]]:
    """The tool call that comes to this, for a cluster on which nobody has acted yet."""
    match event:
        case Settings():
            return "configure_training", {"learning_rate": event.learning_rate}
        case Restore():
            given = {"step": event.step, "skip_batches": event.skip_batches}
            return "restore_checkpoint", given
        case ConfigureRanks():
            given = {"exclude": list(event.exclude), "use_spare": list(event.use_spare)}
            return "configure_ranks", {name: of for name, of in given.items() if of}
        case ConfigureData():
            given = {"quarantine_shards": list(event.quarantine), "reshuffle": event.reshuffle}
            return "configure_data", {name: of for name, of in given.items() if of}
        case _:
            raise ValueError(f"no remedy: {event}")


def _keeps(of: Incident, found: Counterfactuals) -> bool:
    return found.worth == ("quiet" if of.kind in ("healthy", "quiet") else "actionable")


def _begin() -> None:
    torch.set_num_threads(1)


def _all(wanted: Sequence[InstanceId], processes: int) -> Iterator[Forked]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _begin) as pool:
        yield from pool.imap_unordered(forked, wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", nargs="*", choices=SPLITS, default=["eval", "validation"])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--most", type=int, help="instances in this call")
    options = parser.parse_args()
    _begin()
    if not HEALTHY.exists():
        HEALTHY.write_text(measure_healthy().model_dump_json(indent=1) + "\n")
    done = set(frozen.forks())
    wanted = [
        each
        for split in options.splits
        for each in instances(CLUSTER, split)
        if (each.split, each.index) not in done
    ][: options.most]
    file = frozen.file_of(CLUSTER)
    for line in _all(wanted, options.processes):
        with file.open("a", encoding="utf-8") as out:
            out.write(line.model_dump_json() + "\n")
        print(line.model_dump_json(), round(healthy_steps(line.nothing)), flush=True)
    _sort(file)
    _show()
    print(json.dumps({"benchmark": "freeze-cluster", "lines": len(done) + len(wanted)}))


def _sort(file: frozen.Path) -> None:
    """In the order of splits and indices, so that a line added is a line changed."""
    lines = [Forked.model_validate_json(line) for line in file.read_text().splitlines()]
    lines.sort(key=lambda line: (SPLITS.index(line.split), line.index))
    file.write_text("".join(f"{line.model_dump_json()}\n" for line in lines))


def _show() -> None:
    """What each kind of trouble is worth, over all that is released, as docs/guide/cluster.md."""
    frozen.forks.cache_clear()
    found: dict[str, list[Counterfactuals]] = {}
    for (split, index), line in frozen.forks().items():
        of = incident(InstanceId(CLUSTER, split, index), line.candidate)
        name = of.names[0] if len(of.names) == 1 else "pairs" if of.names else "nothing"
        found.setdefault(name, []).append(known(line))
    table = Table("what happens", "instances", "left alone", "best remedy", "gain", "least gain")
    for name in ("nothing", *QUIET, *FAULTS, "pairs"):
        each = found.get(name, [])
        if each:
            row = (len(each), fmean(of.nothing for of in each), fmean(of.best for of in each))
            gains = [of.gain for of in each]
            table.add_row(name, *(f"{value:.0f}" for value in (*row, fmean(gains), min(gains))))
    stdout(100).print(table)
    first = sum(line.candidate == 0 for line in frozen.forks().values())
    print(f"{first} of {len(frozen.forks())} are the first that were drawn")


if __name__ == "__main__":
    main()
