"""Modes of the thread, the process and the machine: none changes a bit unnoticed, all stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from slices import begin, bits, digest, every_task, plan, small, trained

from ml_trainer_env.server import trainer
from ml_trainer_env.server.engine import fingerprint, varied
from ml_trainer_env.server.engine.team import Team
from ml_trainer_env.server.trainer import advance


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varied, "resident", small)


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
