"""The engine's promise: equal keys mean equal bits, whatever runs beside and wherever it runs.

The matrix of tasks and optimizers runs on a slice of the real data, with dropout and augmentation
on. Run as a script, this file prints the digest of every training of the matrix, so that another
process can be compared with this one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any, get_args

import numpy as np
import pytest
import torch

from ml_trainer_env.models import EpochPlan, Optimizer
from ml_trainer_env.server import trainer
from ml_trainer_env.server.engine import fingerprint, varied
from ml_trainer_env.server.engine.inputs import EpochInputs
from ml_trainer_env.server.engine.resident import Resident, Rows, resident
from ml_trainer_env.server.engine.team import SERIAL, Team
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.trainer import Checkpoint, TrainingState, advance

TRAIN, HELD_OUT = 256, 100  # images of the slice: with convolutions, four chunks of evaluation
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
RATES: dict[Optimizer, float] = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001}
MATRIX: list[tuple[str, Optimizer]] = [
    (task_id, optimizer) for task_id in TASKS for optimizer in OPTIMIZERS
]

every_training = pytest.mark.parametrize(("task_id", "optimizer"), MATRIX)
every_task = pytest.mark.parametrize("task_id", TASKS)


@cache
def small(dataset: str) -> Resident:
    data = resident(dataset)

    def cut(rows: Rows, n: int) -> Rows:
        return Rows(rows.images[:n], rows.labels[:n])

    return Resident(
        train=cut(data.train, TRAIN),
        val=cut(data.val, HELD_OUT),
        test=cut(data.test, HELD_OUT),
        probe=cut(data.probe, HELD_OUT),
        train_labels=data.train_labels[:TRAIN],
    )


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varied, "resident", small)


def plan(optimizer: Optimizer = "adam", **changes: Any) -> EpochPlan:
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "learning_rate": RATES[optimizer],
        "batch_size": 64,
        "weight_decay": 0.01,
        "dropout": 0.2,
        "augmentation": 0.5,
    }
    return EpochPlan(**options | changes)


def begin(task_id: str = "easy_mnist", seed: int = 0) -> TrainingState:
    task = TASKS[task_id]
    return trainer.start(task.workload, seed)


def trained(state: TrainingState, plans: Sequence[EpochPlan], team: Team = SERIAL) -> TrainingState:
    for each in plans:
        state = advance(state, each, team)
    return state


def course(optimizer: Optimizer) -> list[EpochPlan]:
    """Two epochs: the second at another rate and batch size, with the moments of the first."""
    first = plan(optimizer)
    second = plan(optimizer, learning_rate=RATES[optimizer] / 2, batch_size=32, dropout=0.4)
    return [first, second]


def bits(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"|".join(t.numpy().tobytes() for t in tensors)).hexdigest()


def digest(state: TrainingState) -> str:
    """Of everything that a state holds."""
    current, best = state.current, state.best_checkpoint
    tensors = (current.weights, current.statistics, best.weights, best.statistics, *state.moments)
    rest = [str(state.run), str(state.optimizer), str(state.steps)]
    return hashlib.sha256("|".join([bits(*tensors), *rest]).encode()).hexdigest()


def copied(state: TrainingState) -> TrainingState:
    """The same value in other memory, as after a crash or on another machine."""

    def copy(checkpoint: Checkpoint) -> Checkpoint:
        return Checkpoint(checkpoint.weights.clone(), checkpoint.statistics.clone())

    moments = tuple(moment.clone() for moment in state.moments)
    best = copy(state.best_checkpoint)
    return replace(state, current=copy(state.current), best_checkpoint=best, moments=moments)


def matrix_digest(training: tuple[str, Optimizer]) -> str:
    task_id, optimizer = training
    return digest(trained(begin(task_id, seed=3), course(optimizer)))


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
        command = [sys.executable, __file__]
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


# --- Modes of the thread and the process -------------------------------------------------------


Mode = Callable[[], AbstractContextManager[Any]]


def of_the_process(change: Callable[[Any], Any], value: Any, usual: Any) -> Mode:
    """A mode that somebody sets for the whole process."""

    @contextmanager
    def mode() -> Iterator[None]:
        change(value)
        try:
            yield
        finally:
            change(usual)

    return mode


FP32: Any = torch.backends
MODES: dict[str, Mode] = {
    "grad": torch.enable_grad,
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "device": partial(torch.device, "meta"),
    "products": of_the_process(
        partial(setattr, FP32.mkldnn.matmul, "fp32_precision"), "bf16", "none"
    ),
    "all fp32": of_the_process(partial(setattr, FP32, "fp32_precision"), "bf16", "none"),
    "no oneDNN": of_the_process(partial(setattr, FP32.mkldnn, "enabled"), False, True),
    "deterministic": of_the_process(torch.use_deterministic_algorithms, True, False),
    "doubles": of_the_process(torch.set_default_dtype, torch.float64, torch.float32),
    "denormals": of_the_process(torch.set_flush_denormal, True, False),
}


def modes_in_force() -> list[Any]:
    """But the intra-op threads, which are one wherever the engine has computed."""
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        FP32.mkldnn.matmul.fp32_precision,
        FP32.mkldnn.conv.fp32_precision,
        torch.get_num_interop_threads(),
        FP32.mkldnn.enabled,
    ]


@every_task
@pytest.mark.parametrize("name", MODES)
def test_no_mode_of_the_caller_changes_a_bit_and_all_stay(task_id: str, name: str) -> None:
    expected = digest(trained(begin(task_id), [plan()]))
    usual = modes_in_force()
    with MODES[name]():
        before = modes_in_force()
        assert digest(trained(begin(task_id), [plan()])) == expected
        assert modes_in_force() == before
    assert modes_in_force() == usual
    assert torch.get_num_threads() == 1


def test_trainings_that_overlap_leave_the_modes_as_they_were() -> None:
    """The first of them to end must not take them from the others."""
    expected = digest(trained(begin("medium_fashion"), [plan(), plan()]))
    with MODES["products"](), MODES["no oneDNN"](), ThreadPoolExecutor(3) as pool:
        before = modes_in_force()
        jobs = [
            pool.submit(trained, begin("medium_fashion"), [plan()] * epochs) for epochs in (1, 2, 2)
        ]
        assert [digest(job.result()) for job in jobs[1:]] == [expected] * 2
        assert modes_in_force() == before


SWITCHED = (
    ("ATEN_CPU_CAPABILITY", "default"),
    ("ONEDNN_MAX_CPU_ISA", "SSE41"),
    ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
    ("DNNL_DEFAULT_FPMATH_MODE", "BF16"),
    ("MKL_CBWR", "COMPATIBLE"),
    ("MKL_ENABLE_INSTRUCTIONS", "SSE4_2"),
    ("NPY_DISABLE_CPU_FEATURES", "AVX2"),
    ("TORCH_MKLDNN_MATMUL_MIN_DIM", "1"),
    ("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2"),
)


def test_a_switch_of_the_kernels_is_named_in_the_fingerprint() -> None:
    for name, value in SWITCHED:
        assert fingerprint.switches({name: value, "HOME": "/root"}) == [f"{name}={value}"]
    assert fingerprint.switches({"MKL_NUM_THREADS": "8", "ONEDNN_VERBOSE": "1"}) == []


def test_the_fingerprint_measures_what_nothing_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a library had been found in another place that rounds otherwise."""
    before = fingerprint.measured("fp32")
    assert fingerprint.measured("fp32") == before
    addmm = torch.addmm

    def rounded_otherwise(*operands: torch.Tensor) -> torch.Tensor:
        return addmm(*operands).mul_(1 + 2**-23)

    monkeypatch.setattr(torch, "addmm", rounded_otherwise)
    assert fingerprint.measured("fp32") != before


@pytest.mark.parametrize(("name", "value"), SWITCHED[:2])
def test_other_kernels_are_another_engine(name: str, value: str) -> None:
    code = "from ml_trainer_env.server.engine.fingerprint import measured; print(measured('fp32'))"
    measured = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, check=True
        ).stdout
        for environment in ({**os.environ}, {**os.environ, name: value})
    ]
    assert measured[0] != measured[1]


@every_task
def test_bf16_is_a_training_of_its_own(task_id: str) -> None:
    work = begin(task_id).run.workload
    try:
        state = trainer.start(work, 0, "bf16")
    except ValueError as error:
        pytest.skip(str(error))
    after, again = advance(state, plan()), advance(state, plan(), Team(2))
    assert digest(after) == digest(again)
    full = advance(begin(task_id), plan())
    assert after.key != full.key
    assert bits(after.current.weights) != bits(full.current.weights)
    assert after.current.weights.dtype == torch.float32
    assert after.run.history[0].val_loss == pytest.approx(full.run.history[0].val_loss, rel=0.1)


if __name__ == "__main__":
    varied.resident = small
    print(json.dumps({"/".join(training): matrix_digest(training) for training in MATRIX}))
