"""Which faults make tasks: what they cost, what the right remedy saves, and what others do.

    python benchmarks/calibration/gates.py                 # all; the last line is JSON
    python benchmarks/calibration/gates.py --names desync --draws 1

Each fault of the cluster is drawn a few times. From its onset a run goes on in which nobody does
anything, one for each remedy, one with the remedy of a fault that looks like it, and one in which
everything is done at once. Told in healthy steps. A fault passes if doing nothing costs
`ACTIONABLE` spreads, the right remedy brings `RIGHT` of the best home, its twin's remedy at most
`TWIN`, and everything at once at most half on average, and harm where nothing is wrong.

And on healthy runs, what somebody gains who acts at once without having seen anything:
`--names` without a name measures that alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from statistics import fmean

import torch
from rich.table import Table

from ml_trainer_env.benchmarks.calibration.cluster_runs import finished, loss, until
from ml_trainer_env.events import MICRO_SHARDS, ConfigureData, ConfigureRanks, Restore
from ml_trainer_env.server.counterfactuals import ACTIONABLE, healthy_steps
from ml_trainer_env.server.draws import Draw
from ml_trainer_env.server.incidents import (
    BASE,
    CORRECTED,
    FAULTS,
    LATER,
    QUIET,
    Incident,
    Kind,
    Remedy,
    Scheduled,
    made,
)
from ml_trainer_env.terminal import stdout

RIGHT, TWIN, ALL_AT_ONCE = 0.8, 0.3, 0.5
LOWER = BASE.model_copy(update={"learning_rate": BASE.learning_rate / 3, "revision": 1})


def _set(**changes: float) -> Remedy:
    return (BASE.model_copy(update=changes),)


HALF = 304.0  # seconds
BLIND: dict[str, tuple[float, Remedy]] = {
    "four data shards out": (0, (ConfigureData(quarantine=(12, 13, 14, 15)),)),
    "four data shards out, one of each rank": (0, (ConfigureData(quarantine=(0, 4, 8, 12)),)),
    "a new order": (0, (ConfigureData(reshuffle=True),)),
    "a rank out": (0, (ConfigureRanks(exclude=(3,)),)),
    "uneven shares": (0, (ConfigureRanks(shares=(1, 5, 5, 5)),)),
    "hardly a checkpoint": (0, _set(checkpoint_every=500)),
    "gradients clipped at 0.5": (0, _set(clip=0.5)),
    "gradients clipped at 2": (0, _set(clip=2.0)),
    "a rate half as high again": (0, _set(learning_rate=1.5 * BASE.learning_rate)),
    "two thirds of the rate": (0, _set(learning_rate=BASE.learning_rate / 1.5)),
    "a warm-up of a fifth": (0, _set(warmup=0.2)),
    "a warm-up of two fifths": (0, _set(warmup=0.4)),
    "no weight decay": (0, _set(weight_decay=0.0)),
    "twice the weight decay": (0, _set(weight_decay=0.1)),
    "a rate half as high again, from half time": (
        HALF,
        _set(learning_rate=1.5 * BASE.learning_rate),
    ),
    "two thirds of the rate, from half time": (HALF, _set(learning_rate=BASE.learning_rate / 1.5)),
}


def twin(name: str, of: Incident) -> Remedy:
    """What somebody does who takes it for what it is not."""
    back = Restore(step=_before(of))
    rank = _rank(of)
    twins: dict[str, Remedy] = {
        "healthy": (back,),
        "benign spike": (Restore(step=_before(of), skip_batches=50),),
        "mildly slow host": (ConfigureRanks(use_spare=(rank,)),),
        "one crash": (ConfigureRanks(exclude=(rank,)),),
        "bad batches": (back,),
        "wrong rate": (Restore(step=_before(of), skip_batches=50),),
        "poisoned shards": (ConfigureRanks(exclude=(rank,)),),
        "sorted rows": (LOWER,),
        "sampler starts over": (LOWER,),
        "turned sign": (ConfigureData(quarantine=(4 * rank % 16, (4 * rank + 1) % 16)),),
        "scaled gradients": (LOWER,),
        "bit flip": (ConfigureRanks(use_spare=(rank,)),),
        "desync": (ConfigureData(quarantine=(4 * rank % 16, (4 * rank + 1) % 16)),),
        "slow host": (back,),
        "slow shard": (ConfigureRanks(use_spare=(rank,)),),
        "crash after crash": (back,),
        "dead host": (back,),
        "truncated checkpoint": (LOWER,),
        "old rate after a move": (back,),
    }
    return twins[name]


def everything(of: Incident) -> Remedy:
    """With the right rank, and data shards that may be right."""
    rank = _rank(of)
    out = tuple(sorted({2 * rank % MICRO_SHARDS, (2 * rank + 5) % MICRO_SHARDS}))
    return (
        Restore(step=_before(of), skip_batches=50),
        ConfigureRanks(exclude=(rank,)),
        ConfigureData(quarantine=out, reshuffle=True),
        CORRECTED,
    )


def measure(name: str, draws: int) -> dict[str, float | str]:
    """Means over draws."""
    rows = [_drawn(name, number) for number in range(draws)]
    means = {key: fmean(row[key] for row in rows) for key in rows[0]}
    return {"name": name, **{key: round(value, 2) for key, value in means.items()}}


def _drawn(name: str, number: int) -> dict[str, float]:
    kind: Kind = "quiet" if name in QUIET else "fault" if name in FAULTS else "healthy"
    of = made(f"gates {name} {number}", kind, () if kind == "healthy" else (name,))
    since = round((of.onsets[0] if of.onsets else 300.0) + LATER * of.step_seconds, 1)
    state = until(of.world, since)

    def worth(does: Remedy) -> float:
        return healthy_steps(loss(of.world, finished(of.world, state, (Scheduled(since, does),))))

    nothing = worth(())
    remedies = [worth(remedy[0].does) for remedy in of.remedies]
    print(name, number, round(nothing), [round(each) for each in remedies], flush=True)
    best = max([nothing, *remedies])
    others = {"twin": worth(twin(name, of)), "all": worth(everything(of))}
    found = {"nothing": nothing, "best": best, "gain": best - nothing}
    for remedy, steps in others.items():
        found[f"{remedy}_steps"] = steps - nothing
        if best > nothing:
            found[f"{remedy}_score"] = max(0.0, min(1.0, (steps - nothing) / (best - nothing)))
        else:
            found[f"{remedy}_score"] = 0.0
    return found


def blind(draws: int) -> dict[str, list[float]]:
    """What each of `BLIND` gains over doing nothing, of each draw."""
    found: dict[str, list[float]] = {name: [] for name in BLIND}
    for number in range(draws):
        world = made(f"gates healthy {number}", "healthy", ()).world
        nothing = healthy_steps(loss(world, finished(world)))
        for name, (since, does) in BLIND.items():
            steps = healthy_steps(loss(world, finished(world, None, (Scheduled(since, does),))))
            found[name].append(round(steps - nothing, 1))
            print(name, number, found[name][-1], flush=True)
    return found


def _before(of: Incident) -> int:
    onset = of.onsets[0] if of.onsets else 300.0
    return int(onset / of.step_seconds - 2) // BASE.checkpoint_every * BASE.checkpoint_every


def _rank(of: Incident) -> int:
    """Whose host it is, where there is one."""
    hosts = [getattr(fault, "host", None) for fault in of.world.faults]
    known = [host for host in hosts if host is not None]
    return known[0] if known else Draw(of.world.name).whole("any rank", 0, of.world.ranks - 1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    every = ("healthy", *QUIET, *FAULTS)
    parser.add_argument("--names", nargs="*", choices=every, default=every)
    parser.add_argument("--draws", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    found: list[dict[str, float | str]] = []
    columns = ("nothing", "best", "gain", "twin_steps", "twin_score", "all_steps", "all_score")
    table = Table("fault", *columns)
    for name in options.names:
        row = measure(name, options.draws)
        print(json.dumps(row), flush=True)
        found.append(row)
        table.add_row(name, *(str(row[column]) for column in columns))
    stdout(160).print(table)
    columns = ("gained by acting blindly", "steps, mean", "of each draw")
    gained, told = blind(options.draws), Table(*columns)
    for name, steps in gained.items():
        told.add_row(name, f"{fmean(steps):+.0f}", ", ".join(f"{each:+.0f}" for each in steps))
    stdout(160).print(told)
    scores = [float(row["all_score"]) for row in found if row["name"] in FAULTS]
    mean = round(fmean(scores), 3) if scores else None
    print(
        json.dumps(
            {
                "benchmark": "gates",
                "actionable": ACTIONABLE,
                "all_at_once": mean,
                "faults": found,
                "blind": gained,
            }
        )
    )


if __name__ == "__main__":
    main()
