"""The show: train, tell what happens, and at the end compute all of it again in one process.

The claim is that nothing is played: with every host a process of its own, killed, slowed and waited
for, every report and every weight is what one process computes. Here a visitor sees it checked.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from ml_trainer_env.cluster_show.faults import told, world
from ml_trainer_env.cluster_show.operator import answer
from ml_trainer_env.cluster_show.screen import Screen
from ml_trainer_env.cluster_show.watched import Watched
from ml_trainer_env.events import Event, Settings, Train
from ml_trainer_env.server.cluster.networks import NETWORKS
from ml_trainer_env.server.cluster.packed import pack
from ml_trainer_env.server.cluster.processes import Processes
from ml_trainer_env.server.cluster.ranks import Together
from ml_trainer_env.server.cluster.reading import corpus
from ml_trainer_env.server.cluster.seen import Seen
from ml_trainer_env.server.cluster.state import ClusterState
from ml_trainer_env.server.cluster.training import Report, advance, start
from ml_trainer_env.server.datasets import DatasetUnavailable
from ml_trainer_env.server.worlds import NetworkName, World
from ml_trainer_env.terminal import plain, stdout
from ml_trainer_env.variables import one_line

SETTINGS = Settings(checkpoint_every=10)  # so that a short show has some


class Played(NamedTuple):
    """What was done, what was seen of it, and what came of it."""

    events: Sequence[Event]
    reports: Sequence[Report]
    state: ClusterState


def show(
    network: NetworkName,
    ranks: int,
    windows: int,
    faults: Sequence[str],
    seed: int,
    *,
    processes: bool,
) -> int:
    """The exit status: 0; 1 where two computations differ or a process ended by itself; 2 without
    data; 130 when interrupted.
    """
    console = stdout()
    try:
        with console.status("reading the data"):
            corpus(network)
    except DatasetUnavailable as error:
        console.print(Text(_without_data(network, error), "bold red"), soft_wrap=True)
        return 2
    of = world(network, ranks, windows, faults)
    _announce(console, of, faults, processes=processes)
    try:
        with Screen(console, windows, processes=processes) as screen, _ranks(of, screen) as watched:
            played = _play(of, seed, windows, screen, watched)
        console.print()
        with console.status("computing all of it again in one process"):
            again = _again(of, seed, played.events)
    except KeyboardInterrupt:
        console.print("interrupted", style="bold red")
        return 130
    except (EOFError, OSError, RuntimeError) as error:  # as pipes and gloo say it
        if not processes:
            raise
        said = f"a host's process ended, and not by this program: {one_line(repr(error))}"
        console.print(Text(said, "bold red"), soft_wrap=True)
        return 1
    return _compared(console, played, again, processes=processes)


def _play(of: World, seed: int, windows: int, screen: Screen, watched: Watched) -> Played:
    state, events, reports = start(of, seed), list[Event](), list[Report]()
    for _ in range(windows):
        began, val_loss = state.step, reports[-1].val_loss if reports else None
        before = time.perf_counter()
        watched.window(state.fleet)
        screen.window(state.fleet.hosts, Seen().ranks(state.fleet))
        events.append(Train(settings=SETTINGS))
        state, report = advance(of, seed, state, events[-1], watched)
        reports.append(report)
        took = time.perf_counter() - before
        screen.trained(state.fleet.hosts, report, took)
        if wanted := answer(began, val_loss, report):
            event, why = wanted
            screen.say(f"operator: {why}", "bold cyan")
            events.append(event)
            state, report = advance(of, seed, state, event, watched)
            reports.append(report)
            screen.changed(state.fleet.hosts, report)
    return Played(events, reports, state)


def _again(of: World, seed: int, events: Sequence[Event]) -> Played:
    """In one process, and from nothing but the events."""
    state, reports = start(of, seed), list[Report]()
    for event in events:
        state, report = advance(of, seed, state, event)
        reports.append(report)
    return Played(events, reports, state)


@contextmanager
def _ranks(of: World, screen: Screen) -> Iterator[Watched]:
    if screen.board.pids is None:
        yield Watched(Together(NETWORKS[of.network]), screen, None)
        return
    with (
        TemporaryDirectory(prefix="ml-trainer-cluster-") as disk,
        Processes(of.network, Path(disk)) as ranks,
    ):
        yield Watched(ranks, screen, ranks.pids)


# What is said -------------------------------------------------------------------------------------


def _without_data(network: NetworkName, error: DatasetUnavailable) -> str:
    if network == "cluster_lm":
        return (
            "cluster_lm needs the text kjv, which is not on this machine; `ml-trainer data fetch "
            "kjv` fetches it where Debian's archive can be reached. "
            "`--network cluster_cnn` needs no text."
        )
    return plain(str(error))


def _announce(console: Console, of: World, faults: Sequence[str], *, processes: bool) -> None:
    where = "every host a process of its own" if processes else "all ranks in this process"
    size = sum(parameter.size for parameter in NETWORKS[of.network].parameters)
    console.print(Text(f" {of.network}, {size:,} parameters, {of.ranks} ranks, {where}", "bold"))
    for name in faults:
        console.print(Text.assemble((f" {name}: ", "magenta"), told(name)), soft_wrap=True)
    console.print()


def _compared(console: Console, played: Played, again: Played, *, processes: bool) -> int:
    here = "in processes" if processes else "just now"
    there = "in one process" if processes else "once more"
    for name, each in ((here, played), (there, again)):
        line = f" weights, {name + ':':<16}SHA-256 {_digest(each.state)}"
        console.print(line, soft_wrap=True)
    count = len(played.reports)
    equal = sum(a == b for a, b in zip(played.reports, again.reports, strict=True))
    same = _contents(played.state) == _contents(again.state)
    if equal == count and same:
        told = f" all {count} reports and every weight, moment and checkpoint: equal to the bit"
        console.print(Text(told, "bold green"), soft_wrap=True)
        return 0
    told = f" {equal} of {count} reports are equal; the states are {'equal' if same else 'not'}"
    console.print(Text(told, "bold red"), soft_wrap=True)
    return 1


def _digest(state: ClusterState) -> str:
    return hashlib.sha256(state.model.weights.numpy().tobytes()).hexdigest()


def _contents(state: ClusterState) -> tuple[object, dict[str, bytes]]:
    """All of a state. Bytes: what is not a number equals itself then, too."""
    packed, tensors = pack(state)
    return packed, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
