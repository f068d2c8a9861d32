"""What happens to a cluster once, when the clock has reached its time."""

from __future__ import annotations

from dataclasses import replace

from ml_trainer_env.events import Settings
from ml_trainer_env.server.cluster import clock
from ml_trainer_env.server.cluster.seen import Seen
from ml_trainer_env.server.cluster.steps import Cluster
from ml_trainer_env.server.worlds import (
    BadResume,
    BitFlip,
    Crash,
    Desync,
    Strike,
    World,
    WrongRate,
)


def in_order(world: World) -> list[Strike]:
    """In the order of their time."""
    found = [fault for fault in world.faults if isinstance(fault, Strike)]
    return sorted(found, key=lambda strike: strike.at)


def strike_due(cluster: Cluster, settings: Settings, seen: Seen) -> bool:
    """What is due by now happens. False where it ends the window."""
    pending = in_order(cluster.world)[cluster.state.struck :]
    due = [each for each in pending if each.at <= cluster.state.seconds]
    cluster.set(struck=cluster.state.struck + len(due))
    down: set[int] = set()  # hosts that have crashed just now
    going_on = [_happen(cluster, each, settings, seen, down) for each in due]
    if all(going_on):
        return True
    _restart(cluster, seen)
    return False


def _happen(
    cluster: Cluster, strike: Strike, settings: Settings, seen: Seen, down: set[int]
) -> bool:
    """False where the job has to start again: once, for all that is due."""
    alive = set(cluster.state.fleet.alive) - down
    match strike:
        case WrongRate():
            _multiply(cluster, strike.times, settings)
        case BitFlip():
            count = len(cluster.state.model.weights)
            cluster.ranks.flip(int(strike.share * count), strike.bit)
        case Desync() if strike.host in alive:
            cluster.ranks.part(strike.host)
        case Crash() if strike.host in alive:
            _crash(cluster, strike, seen)
            down.add(strike.host)
            return False
        case BadResume():
            _move(cluster, strike, settings, seen)
            return False
        case _:
            pass  # it strikes a host that no longer serves, or no longer answers
    return True


def _multiply(cluster: Cluster, times: float, settings: Settings) -> None:
    """The rate, and one that is wrong already."""
    cluster.set(wrong_rate=(times * cluster.wrong(settings), settings.revision))


def _crash(cluster: Cluster, strike: Crash, seen: Seen) -> None:
    state = cluster.state
    dead = state.fleet.dead | ({strike.host} if strike.dead else frozenset[int]())
    cluster.set(fleet=replace(state.fleet, dead=dead), lost=(*state.lost, strike.host))
    cluster.ranks.lose(strike.host)
    seen.incidents.append(f"rank {cluster.rank(strike.host)} was lost")


def _move(cluster: Cluster, strike: BadResume, settings: Settings, seen: Seen) -> None:
    """To hosts that were never seen, for every rank, those that are out included."""
    fleet = cluster.state.fleet
    first = fleet.next_host
    cluster.set(fleet=replace(fleet, hosts=tuple(range(first, first + len(fleet.hosts)))))
    seen.incidents.append("the job was moved to other machines")
    if strike.damage == "truncated":
        *others, latest = cluster.state.checkpoints
        damaged = replace(latest, damaged=True)
        cluster.ranks.write(damaged)
        cluster.set(checkpoints=(*others, damaged))
    else:
        _multiply(cluster, strike.times, settings)


def _restart(cluster: Cluster, seen: Seen) -> None:
    """By the launcher, from the latest checkpoint; the window is over."""
    checkpoint = cluster.state.checkpoints[-1]
    cluster.load(checkpoint)
    cluster.ranks.begin(cluster.state.fleet.alive, cluster.state.model, {})
    cluster.wait(clock.TIMEOUT + clock.RESTART)
    seen.incidents.append(f"restarted from the checkpoint of step {checkpoint.step}")
