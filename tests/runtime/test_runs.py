"""A run is a small value, its key says all that went into it, and it needs no torch."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
from executors import PLAN, WORKLOAD, after, begin, outcome, plan
from hypothesis import given
from hypothesis import strategies as st
from states import begin as begin_training
from states import small
from strategies import diverged, finished, histories

from ml_trainer_env.models import BatchSize, EpochPlan, EpochRecord, Optimizer
from ml_trainer_env.server import runs, trainer
from ml_trainer_env.server.engine import varied
from ml_trainer_env.server.instances import task_of
from ml_trainer_env.server.runs import Engine, Run, Scale, Workload
from ml_trainer_env.server.runtime.orders import METRICS, Answer, Order, Outcome, outcome_of, record
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.variations import CnnShape


def of(history: tuple[EpochRecord, ...]) -> Run:
    run = begin()
    for each in history:
        run = run.after(each)
    return run


# Keys -----------------------------------------------------------------------------------------


def test_the_key_is_the_hash_of_all_that_went_into_it() -> None:
    """Written out, as files of an earlier version have it."""
    workload = Workload("mnist_mlp", "mnist", 1, 2, Scale(0.5, 0.75))
    first = hashlib.sha256(
        b"Workload(network='mnist_mlp', dataset='mnist', shards=1, version=2, "
        b"scale=Scale(low=0.5, high=0.75, gap_weight=0.0))|7|print"
    ).hexdigest()
    run = runs.begin(workload, 7, Engine("print", "fp32", {}))
    assert run.key == first
    json = (
        '{"optimizer":"adam","learning_rate":0.001,"batch_size":64,"weight_decay":0.0,'
        '"dropout":0.2,"augmentation":0.5}'
    )
    second = hashlib.sha256(f"{first}|{json}".encode()).hexdigest()
    assert run.then(PLAN) == second
    assert run.after(record(1, PLAN, outcome(second, PLAN))).keys() == [first, second]


def test_the_key_of_an_instance_has_all_of_its_variation_in_it() -> None:
    work, engine = task_of("varied_mlp/eval/7").workload, Engine("print", "fp32", {})
    assert work.variation is not None
    changes: dict[str, Any] = {
        "name": "other",
        "images": 1,
        "pooling": 1,
        "shape": CnnShape(8, True),
        "multiplier": 7.0,
        "label_noise": 0.3,
        "shift": "recoloured",
    }
    assert set(changes) == {field.name for field in fields(work.variation)}
    others = [replace(work.variation, **{name: value}) for name, value in changes.items()]
    works = [work, replace(work, variation=None), *(replace(work, variation=v) for v in others)]
    assert len({runs.begin(each, 7, engine).key for each in works}) == len(works)


@pytest.mark.parametrize("task_id", TASKS)
def test_the_engine_trains_the_run_that_was_begun(
    monkeypatch: pytest.MonkeyPatch, task_id: str
) -> None:
    monkeypatch.setattr(varied, "resident", small)
    state = begin_training(task_id, 3)
    run = runs.begin(state.run.workload, 3, trainer.engine())
    assert state.run == run
    for each in (PLAN, plan(0.01)):
        state = trainer.advance(state, each)
        assert state.key == run.then(each)
        run = run.after(state.run.history[-1])
        assert state.run == run
        assert run.epoch == len(run.history) == run.history[-1].epoch


@pytest.mark.parametrize(
    "other",
    [
        begin(1),
        runs.begin(
            Workload("mlp", "mnist", 1, 2, Scale(0, 1)), 0, Engine("of the tests", "fp32", {})
        ),
        runs.begin(WORKLOAD, 0, Engine("another", "fp32", {})),
        after(begin(), [PLAN]),
    ],
)
def test_another_seed_workload_engine_or_past_has_another_key(other: Run) -> None:
    assert other.key != begin().key
    assert other.then(PLAN) != begin().then(PLAN)


def test_learning_rates_that_differ_in_the_last_bit_have_other_keys() -> None:
    rate = 0.1
    assert begin().then(plan(rate)) != begin().then(plan(math.nextafter(rate, 1)))


@given(histories())
def test_its_keys_lead_to_its_own(history: tuple[EpochRecord, ...]) -> None:
    run = of(history)
    keys = run.keys()
    assert len(keys) == run.epoch + 1 == len(history) + 1
    assert keys[-1] == run.key
    assert keys == [of(history[:epoch]).key for epoch in range(len(keys))]


# The best -------------------------------------------------------------------------------------


@given(histories())
def test_the_best_is_the_highest_and_the_earliest_on_a_tie(
    history: tuple[EpochRecord, ...],
) -> None:
    trained = [each for each in history if each.val_accuracy is not None]
    expected = max(trained, key=lambda each: each.val_accuracy or 0.0, default=None)
    assert of(history).best is expected  # `max` takes the first


def test_where_the_gap_counts_the_worthier_is_kept_and_between_equals_the_more_accurate() -> None:
    scale = Scale(0.8, 0.9, gap_weight=0.4)
    narrow = finished(1, 0.85, clean_train_accuracy=0.86)
    wide = finished(2, 0.86, clean_train_accuracy=1.0)
    assert scale.better(narrow, wide) is narrow
    assert scale.better(wide, narrow) is narrow
    worthless, better = finished(1, 0.1), finished(2, 0.7)
    assert scale.worth(worthless)[0] == scale.worth(better)[0] == 0
    assert scale.better(worthless, better) is better
    assert scale.better(better, finished(3, 0.7)) is better
    assert scale.better(better, diverged(3)) is better


def test_an_accuracy_of_zero_is_one() -> None:
    assert of((diverged(1), finished(2, 0.0), finished(3, 0.0))).best == finished(2, 0.0)


# Told and written -----------------------------------------------------------------------------

floats = st.floats(0, 1e300, allow_nan=False)
plans = st.builds(
    EpochPlan,
    optimizer=st.sampled_from(get_args(Optimizer)),
    learning_rate=st.floats(0, 10),
    batch_size=st.sampled_from(get_args(BatchSize)),
    weight_decay=st.floats(0, 1),
    dropout=st.floats(0, 0.5),
    augmentation=st.floats(0, 1),
)
some_metrics = st.one_of(st.tuples(*[floats] * len(METRICS)), st.just((None,) * len(METRICS)))


@given(plans, some_metrics, floats)
def test_orders_and_answers_keep_every_bit(
    its_plan: EpochPlan, values: tuple[float | None, ...], seconds: float
) -> None:
    order = Order(
        workload=WORKLOAD,
        seed=2**31,
        precision="fp32",
        state=None,
        plans=(its_plan,),
        seconds=seconds,
    )
    arrived = Order.model_validate_json(order.model_dump_json())
    assert arrived == order
    assert begin().then(arrived.plans[0]) == begin().then(its_plan)
    answer = Answer(outcome=Outcome(values), seconds=seconds, last=True, test_accuracy=values[0])
    told = Answer.model_validate_json(answer.model_dump_json(exclude_defaults=True))
    assert told == answer
    assert outcome_of(told.record(3, its_plan)) == Outcome(values)


# No torch -------------------------------------------------------------------------------------

EPISODE = """
import sys
from executors import ENGINE, FakeExecutor
from ml_trainer_env.server import runs
from ml_trainer_env.server.episode.tools import begun
from ml_trainer_env.server.runtime.cores import Cores
from ml_trainer_env.server.runtime.records import Records
from ml_trainer_env.server.runtime.runner import SliceRunner
from ml_trainer_env.server.runtime.sharing import SharingRunner
from ml_trainer_env.server.runtime.states import States
from ml_trainer_env.server.session import process
from ml_trainer_env.server.tasks import TASKS

runner = SharingRunner(SliceRunner(FakeExecutor(), Cores(1, 1), States(10**6)), Records())
task = TASKS["easy_mnist"]
for _ in range(2):
    episode = begun(task, process.begin(ENGINE, task, 0), runner)
    episode.configure_training({})
    episode.run_epochs(5)
    print(episode.submit_model().grade.score)
print("torch" in sys.modules, "safetensors" in sys.modules)
"""


def test_runs_episodes_and_their_process_need_no_torch() -> None:
    path = [each for each in sys.path if each.endswith("helpers")]
    program = f"import sys; sys.path[:0] = {path}\n{EPISODE}"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    first, second, loaded = ended.stdout.splitlines()
    assert first == second
    assert loaded == "False False"
