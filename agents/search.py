"""Search agents: many short trials, all paid from one epoch budget; the best is trained on.

- `tpe`: Optuna's sampler, which learns from the trials before, with median pruning;
- `halving`: successive halving (Jamieson & Talwalkar 2016): of eight configurations the better
  half goes on with twice the epochs, and so on;
- `population`: population-based training (Jaderberg et al. 2017): the worst of four is replaced by
  a fork of the best with perturbed options.

A trial trains at a constant rate, since a schedule would need to know how long it will live. The
one that is chosen is then annealed over all that is left.
"""

from __future__ import annotations

import math
import random

import optuna

from ml_trainer_env.agents.attempt import Attempt, Trial
from ml_trainer_env.agents.moves import cooled
from ml_trainer_env.models import MAX_EPOCHS_PER_CALL
from ml_trainer_env.task_ids import instance_id

ANNEALING = 8  # steps of the rate on its way down
CALLS_A_STEP = 2  # tool calls; a step that diverges needs two more

TPE_SHARE = 0.5  # of the budget that goes into trials
TPE_TRIAL = 10  # trials that the whole budget would pay for
TPE_RUNGS = 3  # looks at a trial at which it may be pruned

HALVING_CONFIGURATIONS = 8  # a power of two

POPULATION = 4
GENERATIONS = 5
POPULATION_SHARE = 0.5
PERTURBATIONS = (0.8, 1.25)


def tpe(attempt: Attempt) -> None:
    """Optuna's tree-structured Parzen estimator with pruning."""
    study = _study(optuna.samplers.TPESampler(n_startup_trials=4, seed=attempt.seed))
    first = attempt.begin()
    epochs = max(TPE_RUNGS, attempt.budget // TPE_TRIAL)
    reserve = round(attempt.budget * (1 - TPE_SHARE))
    trial = first
    while True:
        asked = study.ask()
        _configure(trial, asked)
        value, pruned = _rungs(trial, asked, epochs)
        state = optuna.trial.TrialState.PRUNED if pruned else None
        study.tell(asked, None if pruned else value, state=state)
        if attempt.ended or attempt.remaining - epochs < reserve:
            break
        trial = attempt.begin()
    _finish(attempt, max(attempt.trials, key=merit))


def _rungs(trial: Trial, asked: optuna.Trial, epochs: int) -> tuple[float, bool]:
    """Train a trial; its worth, and whether it was pruned on the way."""
    for rung in range(TPE_RUNGS):
        train(trial, epochs * (rung + 1) // TPE_RUNGS - epochs * rung // TPE_RUNGS)
        asked.report(merit(trial), rung)
        if asked.should_prune():
            return merit(trial), True
    return merit(trial), False


def halving(attempt: Attempt) -> None:
    """Successive halving; the last configuration takes all that is left."""
    study = _study(optuna.samplers.RandomSampler(seed=attempt.seed))
    trials = [attempt.begin() for _ in range(HALVING_CONFIGURATIONS)]
    for trial in trials:
        _configure(trial, study.ask())
    rungs = int(math.log2(HALVING_CONFIGURATIONS)) + 1
    share = attempt.budget / rungs
    while len(trials) > 1:
        for trial in trials:
            train(trial, max(1, int(share / len(trials))))
        trials = sorted(trials, key=merit, reverse=True)[: len(trials) // 2]
    _finish(attempt, trials[0])


def population(attempt: Attempt) -> None:
    """Population-based training; the best of the last generation takes what is left."""
    source = random.Random(f"population {attempt.task_id} {attempt.seed}")
    study = _study(optuna.samplers.RandomSampler(seed=attempt.seed))
    members = [attempt.begin() for _ in range(POPULATION)]
    for member in members:
        _configure(member, study.ask())
    share = attempt.budget * POPULATION_SHARE
    epochs = max(1, int(share / (POPULATION * GENERATIONS)))
    generations = min(GENERATIONS, int(share / (POPULATION * epochs)))
    for generation in range(generations):
        for member in members:
            train(member, epochs)
        members.sort(key=merit, reverse=True)
        if attempt.ended:
            return
        if generation < generations - 1:
            members[-1] = attempt.fork(members[0])
            _perturb(members[-1], source)
    _finish(attempt, members[0])


# What they share ----------------------------------------------------------------------------------


def merit(trial: Trial) -> float:
    """What trials are compared by."""
    return trial.status.best_val_accuracy or 0.0


def train(trial: Trial, epochs: int) -> None:
    """Train; a divergence takes its epoch and a lower rate."""
    while epochs > 0 and not trial.is_over:  # the last call of a session submits
        if trial.status.is_diverged and trial.status.current_config:
            move = cooled(trial.status.current_config)
            trial.call(move.tool, **move.arguments)
        epochs -= trial.run(min(epochs, MAX_EPOCHS_PER_CALL)).epochs_run


def _finish(attempt: Attempt, best: Trial) -> None:
    """Anneal over what is left of the budget, along half a cosine, and submit."""
    assert best.status.current_config is not None
    peak, epochs = best.status.current_config.learning_rate, attempt.remaining
    pieces = min(ANNEALING, epochs, (best.status.tool_calls_left - 2) // CALLS_A_STEP)
    for piece in range(pieces):
        if best.is_over:
            return
        height = 0.5 * (1 + math.cos(math.pi * piece / pieces))
        best.call("adjust_learning_rate", new_lr=peak * height)
        train(best, epochs * (piece + 1) // pieces - epochs * piece // pieces)
    if not best.is_over:
        best.call("submit_model")


def _study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        direction="maximize",
        sampler=sampler,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )


def _configure(trial: Trial, asked: optuna.Trial) -> None:
    """Draw a configuration from ranges that suit networks of this size."""
    trial.call(
        "configure_training",
        optimizer="adamw",
        learning_rate=asked.suggest_float("learning_rate", *_rates(trial), log=True),
        batch_size=asked.suggest_categorical("batch_size", [64, 128]),
        weight_decay=asked.suggest_float("weight_decay", 1e-4, 0.2, log=True),
        dropout=asked.suggest_float("dropout", 0.0, 0.5),
        augmentation=True,
        augmentation_strength=asked.suggest_float("augmentation_strength", 0.0, 1.0),
    )


def _rates(trial: Trial) -> tuple[float, float]:
    """What is known before a search: of an instance little more than of any network."""
    return (1e-5, 0.3) if instance_id(trial.status.task_id) else (3e-4, 1e-2)


def _perturb(trial: Trial, source: random.Random) -> None:
    """Each option a little higher or lower."""
    config = trial.status.current_config
    assert config is not None

    def changed(value: float, highest: float) -> float:
        return min(highest, value * source.choice(PERTURBATIONS))

    trial.call(
        "configure_training",
        learning_rate=changed(config.learning_rate, 10),
        weight_decay=changed(config.weight_decay, 1),
        dropout=changed(config.dropout, 0.5),
        augmentation_strength=changed(config.augmentation_strength, 1),
    )
