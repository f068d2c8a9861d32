"""The engine's promise: equal keys mean equal bits, whatever runs beside and wherever it runs.

The matrix of tasks and optimizers runs on a slice of the real data, with dropout and augmentation
on.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import slices
import torch
from slices import (
    MATRIX,
    TRAIN,
    begin,
    bits,
    course,
    digest,
    every_task,
    matrix_digest,
    plan,
    small,
    trained,
)

from ml_trainer_env.models import EpochPlan, Optimizer
from ml_trainer_env.server import trainer
from ml_trainer_env.server.engine import varied
from ml_trainer_env.server.engine.inputs import EpochInputs
from ml_trainer_env.server.engine.resident import resident
from ml_trainer_env.server.engine.team import Team
from ml_trainer_env.server.trainer import Checkpoint, TrainingState, advance

every_training = pytest.mark.parametrize(("task_id", "optimizer"), MATRIX)


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varied, "resident", small)


def copied(state: TrainingState) -> TrainingState:
    """The same value in other memory, as after a crash or on another machine."""

    def copy(checkpoint: Checkpoint) -> Checkpoint:
        return Checkpoint(checkpoint.weights.clone(), checkpoint.statistics.clone())

    moments = tuple(moment.clone() for moment in state.moments)
    best = copy(state.best_checkpoint)
    return replace(state, current=copy(state.current), best_checkpoint=best, moments=moments)


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """The digest of each training of the matrix, run by itself on one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varied, "resident", small)
        return {"/".join(training): matrix_digest(training) for training in MATRIX}


# --- Equal keys mean equal bits -----------------------------------------------------------------


@every_training
def test_repetition_and_two_threads_give_the_same_bits(
    alone: dict[str, str], task_id: str, optimizer: Optimizer
) -> None:
    expected = alone[f"{task_id}/{optimizer}"]
    assert matrix_digest((task_id, optimizer)) == expected
    for threads in (2, 3):
        team = Team(threads)
        assert digest(trained(begin(task_id, 3), course(optimizer), team)) == expected
        team.close()


@every_training
def test_two_epochs_and_three_are_five(task_id: str, optimizer: Optimizer) -> None:
    plans = [*course(optimizer), *course("sgd"), plan(optimizer)]
    in_one_go = trained(begin(task_id), plans)
    halfway = copied(trained(begin(task_id), plans[:2]))
    trained(begin(task_id, seed=1), [plan("sgd")])  # something else in between
    assert digest(trained(halfway, plans[2:])) == digest(in_one_go)


@every_training
def test_the_state_before_is_never_written_to(task_id: str, optimizer: Optimizer) -> None:
    before = trained(begin(task_id), [plan(optimizer)])
    seen = digest(before)
    after = advance(before, plan(optimizer))
    assert digest(before) == seen
    assert digest(advance(before, plan(optimizer))) == digest(after)
    trained(after, course("sgd"))
    assert digest(before) == seen


def test_other_trainings_in_the_process_change_nothing(alone: dict[str, str]) -> None:
    with ThreadPoolExecutor(4) as threads:
        crowd = list(threads.map(matrix_digest, MATRIX))
    assert dict(zip(alone, crowd, strict=True)) == alone


def test_other_processes_with_other_threads_give_the_same_bits(alone: dict[str, str]) -> None:
    def process(threads: int) -> dict[str, str]:
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, slices.__file__]
        return json.loads(subprocess.check_output(command, env=env, text=True, timeout=110))

    with ThreadPoolExecutor(2) as both:
        assert list(both.map(process, [1, 2])) == [alone, alone]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_whole_epoch_of_the_real_size(
    monkeypatch: pytest.MonkeyPatch, threads: int, whole: Callable[[], str]
) -> None:
    monkeypatch.setattr(varied, "resident", resident)
    team = Team(threads)
    assert digest(advance(begin(), plan(), team)) == whole()
    team.close()


@pytest.fixture(scope="module")
def whole() -> Callable[[], str]:
    return cache(lambda: digest(advance(begin(), plan())))


CHANGES: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 0.0010000001,
    "batch_size": 32,
    "weight_decay": 0.02,
    "dropout": 0.3,
    "augmentation": 0.6,
}


@every_task
def test_every_field_of_the_plan_changes_the_key_and_the_bits(task_id: str) -> None:
    assert CHANGES.keys() == EpochPlan.model_fields.keys()
    state = begin(task_id)
    others = [advance(state, plan().model_copy(update={k: v})) for k, v in CHANGES.items()]
    states = [advance(state, plan()), *others]
    assert len({s.key for s in states}) == len(states)
    assert len({bits(s.current.weights) for s in states}) == len(states)


@every_task
def test_every_origin_has_a_key_of_its_own(task_id: str) -> None:
    state = begin(task_id)
    work = state.run.workload
    changed = [
        replace(work, network="other"),
        replace(work, dataset="other"),
        replace(work, shards=work.shards + 1),
        replace(work, version=work.version + 1),
    ]
    known = dict.fromkeys(["other", work.network], trainer.NETWORKS[work.network])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "NETWORKS", known)
        keys = {trainer.start(w, 0).key for w in changed}
    assert len(keys | {state.key, begin(task_id, seed=1).key}) == 6
    assert bits(begin(task_id, 1).current.weights) != bits(state.current.weights)


def test_the_order_of_plans_counts() -> None:
    one, other = plan("sgd"), plan("adam")
    there, back = trained(begin(), [one, other]), trained(begin(), [other, one])
    assert there.key != back.key
    assert digest(there) != digest(back)


# --- Randomness ---------------------------------------------------------------------------------


def drawn(epoch: int = 0, seed: int = 0, **changes: Any) -> EpochInputs:
    return EpochInputs.draw(small("mnist"), plan(**changes), "mnist", seed, epoch, units=128)


def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


def test_each_kind_of_randomness_has_a_stream_of_its_own() -> None:
    both, neither = drawn(), drawn(dropout=0, augmentation=0)
    assert neither.noise is None
    assert neither.maps is None
    assert same(both.order, neither.order)
    assert same(both.maps, drawn(dropout=0).maps)
    assert same(both.noise, drawn(augmentation=0).noise)
    assert sorted(both.order.tolist()) == list(range(TRAIN))


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_epochs_and_seeds_draw_differently(other: dict[str, int]) -> None:
    a, b = drawn(), drawn(**other)
    assert not same(a.order, b.order)
    assert not same(a.maps, b.maps)
    assert not same(a.noise, b.noise)


def test_rows_are_the_same_however_they_are_asked_for() -> None:
    inputs = drawn()
    together, parts = inputs.rows(0, 60), [inputs.rows(40, 60), inputs.rows(0, 40)]
    assert same(together.images, torch.cat([parts[1].images, parts[0].images]))
    assert same(together.labels, torch.cat([parts[1].labels, parts[0].labels]))
    assert same(together.part(40, 60).masks, parts[0].masks)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    masks = drawn(dropout=0.25).rows(0, TRAIN).masks
    assert masks is not None
    assert torch.equal(masks.unique(), torch.tensor([0, 4 / 3]))
    assert masks.mean().item() == pytest.approx(1, abs=0.02)


@every_task
def test_global_generators_are_neither_used_nor_touched(task_id: str) -> None:
    def generators() -> list[Any]:
        numpys = str(np.random.get_state(legacy=False))  # noqa: NPY002
        return [random.getstate(), numpys, bits(torch.get_rng_state())]

    before, first = generators(), digest(trained(begin(task_id), [plan()]))
    assert generators() == before
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert digest(trained(begin(task_id), [plan()])) == first
