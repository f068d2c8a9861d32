"""The first steps of the last window again, each rank's part on the host of the next.

Data and weights are as they were, those of ranks that were out of step included, so what differs
came of a host, or happened once while the window was made: a bit that flipped, a rank that fell out
of step. What hosts do in a replay is drawn anew, and nothing of it is left but the time it took.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ml_trainer_env.events import REPLAYED
from ml_trainer_env.server.cluster import clock
from ml_trainer_env.server.cluster.ranks import Lost
from ml_trainer_env.server.cluster.seen import Seen
from ml_trainer_env.server.cluster.state import Fleet, Shown, Window
from ml_trainer_env.server.cluster.steps import Cluster

TURNED = 1  # hosts on


def replay(cluster: Cluster) -> list[str]:
    """What it finds, step by step, and all together in the last line."""
    now, window = cluster.state, cluster.state.window
    if len(now.fleet.serving) == 1:
        return ["one rank works: there is no other host to compare with"]
    if window is None:
        return ["there is no window to replay"]
    cluster.set(sampler=window.sampler)
    apart = _turned(now.fleet, window.apart)
    cluster.ranks.begin(now.fleet.alive, window.model, apart)
    lines = _steps(cluster, window)
    cluster.state = replace(now, seconds=cluster.state.seconds)
    return lines


def _turned(fleet: Fleet, apart: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Weights stay with the rank whose part it is, so they go to the host that does it now."""
    hosts = fleet.serving
    moved = zip(hosts, (*hosts[TURNED:], *hosts[:TURNED]), strict=True)
    return {other: apart[host] for host, other in moved if host in apart and other in fleet.alive}


def _steps(cluster: Cluster, window: Window) -> list[str]:
    began, seen, steps = cluster.state.seconds, Seen(), window.shown[:REPLAYED]
    lines: list[str] = []
    for number, then in enumerate(steps):
        # By the clock, so that another look draws anew, and no step of a window draws the same.
        name = f"step {number} of the replay at {began} s"
        try:
            cluster.step(window.settings, then.rate, seen, name, TURNED)
        except Lost as lost:
            cluster.wait(clock.TIMEOUT)
            rank = cluster.rank(lost.host)
            return [*lines, f"a collective timed out, waiting for rank {rank}"]
        lines.append(_told(then, seen.steps[-1]))
    differ = sum(then != again for then, again in zip(steps, seen.steps, strict=True))
    return [*lines, _summed(len(steps), differ)]


def _told(then: Shown, again: Shown) -> str:
    return (
        f"loss {_number(then.loss)}, again {_number(again.loss)}; "
        f"gradient norm {_number(then.norm)}, again {_number(again.norm)}: "
        f"{'the same' if again == then else 'different'}"
    )


def _summed(steps: int, differ: int) -> str:
    if not differ:
        return f"{steps} steps on other hosts: the same"
    return (
        f"{differ} of {steps} steps differ: a host computes wrongly, then or now, or something "
        "happened once while they were made"
    )


def _number(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.4f}"
