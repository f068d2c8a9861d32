"""PyTorch's modes while the engine computes: always the same, whatever the process has set.

Guarantees, within the blocks: full precision in every product and convolution, oneDNN's kernels, no
flushing of denormals, no autograd, no ambient autocast, one intra-op thread. What the process had
set is there again afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch

from ml_trainer_env.server.runs import Precision

_C: Any = torch._C  # the getters and setters behind `torch.backends`, without its warnings


class _Mode(NamedTuple):
    """A mode of the whole process, and the value that the engine computes with."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    wanted: Any


def _full_precision(operation: str) -> _Mode:
    """`torch.set_float32_matmul_precision` and `torch.backends.fp32_precision` end up here."""

    def get() -> str:
        """`none` for what is inherited, so that it is inherited again afterwards."""
        own = _C._get_fp32_precision_getter("mkldnn", operation)
        return "none" if own == _C._get_fp32_precision_getter("mkldnn", "all") else own

    return _Mode(get, partial(_C._set_fp32_precision_setter, "mkldnn", operation), "ieee")


_MODES = (
    _full_precision("matmul"),
    _full_precision("conv"),
    _Mode(_C._get_mkldnn_enabled, _C._set_mkldnn_enabled, True),
    _Mode(_C._get_mkldnn_deterministic, _C._set_mkldnn_deterministic, False),
    _Mode(_C._get_nnpack_enabled, _C._set_nnpack_enabled, True),
    _Mode(_C._get_deterministic_algorithms, partial(_C._set_deterministic_algorithms), False),
    _Mode(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
)

_lock = threading.Lock()
_users = 0
_ambient: list[Any] = []


@contextmanager
def of_the_engine() -> Iterator[None]:
    """The modes of the whole process, for as long as anybody is in such a block."""
    global _users
    with _lock:
        if _users == 0:
            _ambient[:] = [mode.get() for mode in _MODES]
            _set([mode.wanted for mode in _MODES])
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _set(_ambient)


@contextmanager
def of_a_computation(precision: Precision) -> Iterator[None]:
    """The modes that belong to threads: every computation enters them, whichever thread runs it.

    One intra-op thread, because the bits depend on it; no autograd but where a network asks for it.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)
    inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    bf16, ambient = precision == "bf16", torch.is_autocast_enabled("cpu")
    half = nullcontext()  # entering autocast, even disabled, costs 10 us a shard
    if bf16 or ambient:
        half = torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False)
    with inference, torch.no_grad(), half, _on_the_cpu():
        yield


def _on_the_cpu() -> AbstractContextManager[Any]:
    """Where new tensors are made, if this thread has said that it be elsewhere."""
    return nullcontext() if torch.empty(0).is_cpu else torch.device("cpu")


def _set(values: list[Any]) -> None:
    for mode, value in zip(_MODES, values, strict=True):
        if mode.get() != value:
            mode.set(value)
