"""Can it be learned? PPO on `varied_mlp`, chosen on validation, reported on eval: `make learn`.

    make learn ARGS='train --seed 0'    # hours on two cores; goes on where it was
    make learn ARGS='report'            # eval, for every seed that was trained, and the baselines

The policy is Stable-Baselines3's own, on the environment of `adapters/stable_baselines.py`, over
a server that trains in its workers. A round is `ROUND` steps; after each the policy plays
validation without chance, and the one that scores best there is what the report plays on eval. On
disk are `SEED/latest.zip`, `SEED/best.zip`, and a line of `SEED/curve.jsonl` for each round.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean, geometric_mean, quantiles
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from ml_trainer_env.adapters.gymnasium import TrainingEnv
from ml_trainer_env.adapters.stable_baselines import SideBySide
from ml_trainer_env.adapters.steps import GUESSING
from ml_trainer_env.agents.session import Connect, RemoteSession
from ml_trainer_env.evals import evaluate, results
from ml_trainer_env.evals.progress import Progress
from ml_trainer_env.local_server import LOGS, local_server
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.surroundings import variables_set
from ml_trainer_env.task_ids import TaskId, named
from ml_trainer_env.terminal import stdout

FOLDER = Path("outputs") / "learn"
TRAIN, VALIDATION, EVAL = "varied_mlp", "varied_mlp/validation", "varied_mlp/eval"
SESSIONS = 32  # side by side
STEPS = 8  # of each session, between two updates: episodes are dear, updates are not
ROUND = 16 * SESSIONS * STEPS
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
BASELINES = ("random", "constant", "expert", "oracle")
SETTINGS: dict[str, Any] = {
    "n_steps": STEPS,
    "batch_size": 64,
    "n_epochs": 8,
    "gamma": 1.0,  # an episode has few steps, and what counts is its end
    "gae_lambda": 0.95,
    "learning_rate": 5e-4,
    "ent_coef": 0.01,
    "policy_kwargs": {"net_arch": [128, 128]},
    "device": "cpu",
}


class Step(NamedTuple):
    """A step of the policy, and what came of it."""

    action: tuple[int, ...]
    rate: float  # configured
    epochs: int
    val_loss: float | None
    diverged: bool


class Played(NamedTuple):
    """An episode of the policy without chance."""

    task_id: TaskId
    score: float
    episode_return: float
    steps: tuple[Step, ...]


class Ended(BaseCallback):
    """What the episodes of a round have brought."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[float] = []

    def _on_step(self) -> bool:
        self.scores += [info["score"] for info in self.locals["infos"] if "score" in info]
        return True


def train(seed: int, rounds: int, url: str) -> None:
    """Until there are so many rounds on disk."""
    folder = FOLDER / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    curve = folder / "curve.jsonl"
    told = _lines(curve)
    envs = SideBySide(SESSIONS, tasks=[TRAIN], url=url)
    latest = folder / "latest.zip"
    model = (
        PPO.load(latest, envs, device="cpu")
        if latest.exists()
        else PPO("MlpPolicy", envs, seed=seed, **SETTINGS)
    )
    # Other streams than those of other seeds, and than those before an interruption.
    model.set_random_seed(1_000_003 * seed + SESSIONS * len(told))
    for number in range(len(told), rounds):
        began, ended = time.time(), Ended()
        model.learn(ROUND, callback=ended, reset_num_timesteps=False)
        on_validation = fmean(each.score for each in play(model, named(VALIDATION), url))
        if on_validation > max((line["validation"] for line in told), default=-1.0):
            model.save(folder / "best.zip")
        line = {
            "round": number + 1,
            "steps": model.num_timesteps,
            "episodes": len(ended.scores),
            "train": fmean(ended.scores),
            "validation": on_validation,
            "seconds": time.time() - began,
        }
        told.append(line)
        aside = folder / "aside.zip"
        model.save(aside)
        aside.replace(latest)
        with curve.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    envs.close()


def play(model: PPO, tasks: Sequence[TaskId], url: str) -> list[Played]:
    """Each of `tasks` once, seed 0, always the action that is most likely."""
    with ThreadPoolExecutor(SESSIONS) as threads:
        return list(threads.map(partial(_play, model, url), tasks))


def _play(model: PPO, url: str, task_id: TaskId) -> Played:
    env = TrainingEnv(url=url)
    observation, _ = env.reset(options={"task_id": task_id, "seed": 0})
    steps: list[Step] = []
    total, done, info = 0.0, False, {}
    while not done:
        action, _ = model.predict(observation, deterministic=True)
        before = env.status.current_epoch
        observation, reward, done, _, info = env.step(action)
        now = env.status
        assert now.current_config is not None, "a step configures"
        rate, epochs = now.current_config.learning_rate, now.current_epoch - before
        steps.append(Step(tuple(action.tolist()), rate, epochs, now.val_loss, now.is_diverged))
        total += reward
    env.close()
    return Played(task_id, info["score"], total, tuple(steps))


def report(url: str) -> None:
    """Every trained seed on eval, paired with the baselines instance by instance."""
    baselines = _baselines(url)
    table = Table("", "score on eval", *(f"over {name}" for name in BASELINES))
    found: dict[str, Any] = {}
    for name in BASELINES:
        table.add_row(name, _told([baselines[name][task] for task in named(EVAL)]))
    for folder in _seeds():
        model = PPO.load(folder / "best.zip", device="cpu")
        episodes = play(model, named(EVAL), url)
        (folder / "eval.json").write_text(json.dumps([each._asdict() for each in episodes]))
        scores = {each.task_id: each.score for each in episodes}
        over = {
            name: [
                scores[task] - score for task, score in baselines[name].items() if task in scores
            ]
            for name in BASELINES
        }
        table.add_row(
            f"PPO, seed {folder.name}", _told([*scores.values()]), *map(_told, over.values())
        )
        found[folder.name] = {
            "score": fmean(scores.values()),
            "over": {
                name: [fmean(values), *results.bootstrap(values)] for name, values in over.items()
            },
            "habits": habits(episodes),
        }
    stdout().print(table)
    draw({name: fmean(baselines[name].values()) for name in BASELINES})
    print(json.dumps({"benchmark": "learn", "seeds": found}))


def draw(baselines: dict[str, float]) -> None:
    """The curves of all seeds, and where the baselines are on eval: `FOLDER/curves.png`."""
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for folder, colour in zip(_seeds(), COLOURS, strict=False):
        told = _lines(folder / "curve.jsonl")
        episodes = list(accumulate(line["episodes"] for line in told))
        for name, style in (("train", ":"), ("validation", "-")):
            axes.plot(
                episodes,
                [line[name] for line in told],
                style,
                color=colour,
                label=f"seed {folder.name}, {name}",
            )
    for name, score in baselines.items():
        axes.axhline(score, color="#999999", linewidth=0.8)
        place = (0, score)
        axes.annotate(
            f"{name} on eval",
            place,
            (3, 2),
            textcoords="offset points",
            color="#555555",
            fontsize=8,
        )
    axes.set(xlim=(0, None), ylim=(0, 1.06))
    axes.set_xlabel("episodes")
    axes.set_ylabel("final score")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(FOLDER / "curves.png")


def _seeds() -> list[Path]:
    return sorted(path.parent for path in FOLDER.glob("[0-9]*/best.zip"))


def habits(episodes: Sequence[Played]) -> dict[str, Any]:
    """What the policy does, in numbers: which probes, which reactions, and what it ends with."""
    hidden = {each.task_id: task_of(each.task_id).hidden for each in episodes}
    last = [(hidden[each.task_id], each.steps[-1]) for each in episodes]
    pairs = [pair for each in episodes for pair in pairwise(each.steps)]
    after = {
        "divergence": [b.rate / a.rate for a, b in pairs if a.diverged],
        "a loss above guessing": [b.rate / a.rate for a, b in pairs if _loss(a) > GUESSING],
        "a loss hardly below it": [
            b.rate / a.rate for a, b in pairs if GUESSING - 0.1 < _loss(a) <= GUESSING
        ],
        "a loss far below it": [b.rate / a.rate for a, b in pairs if _loss(a) < GUESSING - 1],
    }
    notches = {
        noise: [step.action[1] for of, step in last if of["label_noise"] == noise]
        for noise in (0.0, 0.2, 0.4)
    }
    rates = [step.rate * float(of["multiplier"]) for of, step in last]
    return {
        "steps": fmean(len(each.steps) for each in episodes),
        "epochs of a probe": fmean(step.epochs for each in episodes for step in each.steps[:-1]),
        "epochs of the last step": fmean(step.epochs for _, step in last),
        "last step annealed": fmean(step.action[2] == 1 for _, step in last),
        "last rate x multiplier, quartiles": [f"{value:.2g}" for value in quantiles(rates, n=4)],
        "rate changed by, after": {
            what: [len(factors), round(geometric_mean(factors), 2)]
            for what, factors in after.items()
            if factors
        },
        "last notch, by share of wrong labels": {
            str(noise): round(fmean(each), 2) for noise, each in notches.items() if each
        },
    }


def _loss(step: Step) -> float:
    return float("inf") if step.val_loss is None else step.val_loss


def _baselines(url: str) -> dict[str, dict[TaskId, float]]:
    """The scores of agents of the catalogue on eval, seed 0; played where they are not on disk."""
    folder = FOLDER / "baselines"
    connect: Connect = partial(RemoteSession, url)
    wanted = evaluate.jobs(evaluate.contenders(BASELINES, named(EVAL)), 1, connect)
    todo = evaluate.pending(wanted, folder)
    progress = Progress(stdout(), len(wanted), len(wanted) - len(todo))
    if failures := evaluate.evaluate(todo, folder, connect, parallel=2, progress=progress):
        raise RuntimeError("; ".join(evaluate.together(failures)))
    rows = results.rows(results.load(folder).results)
    return {row.agent: {each.task_id: each.score for each in row.results} for row in rows}


def _told(values: Sequence[float]) -> str:
    low, high = results.bootstrap(values)
    return f"{fmean(values):.3f} ({low:.3f} to {high:.3f})"


def _lines(curve: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []


@contextmanager
def _serving() -> Iterator[str]:
    variables = {"ML_TRAINER_MAX_SESSIONS": str(4 * SESSIONS)}
    with variables_set(variables), local_server(LOGS / "learn-server.log") as url:
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("train", "report"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the cores are the server's
    with _serving() as url:
        if options.command == "train":
            train(options.seed, options.rounds, url)
        else:
            report(url)


if __name__ == "__main__":
    main()
