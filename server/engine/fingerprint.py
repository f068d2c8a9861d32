"""The engine's fingerprint: what the bits of a training depend on beside its state and its plans.

Two processes with the same fingerprint give the same bits. It names what is known to matter (the
versions, the processor, switches in the environment) and ends in a measurement: the digest of a
step of every network. So a cause that nobody has thought of, say a library that was found in
another place, shows in it, too.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ml_trainer_env.models import EpochPlan
from ml_trainer_env.server.engine import modes
from ml_trainer_env.server.engine.augment import augment, draw_maps
from ml_trainer_env.server.engine.optimizers import update
from ml_trainer_env.server.models_nn import (
    CLASSES,
    NETWORKS,
    Network,
    initial_statistics,
    initial_weights,
)
from ml_trainer_env.server.models_varied import HEAVIEST
from ml_trainer_env.server.runs import Precision

ENGINE_VERSION = 2  # raise with every change that changes a bit

# By variables with these beginnings libraries choose other kernels, and with them other bits.
SWITCHES = (
    *("ONEDNN_", "DNNL_", "MKL_", "MKLDNN_", "ATEN_", "FBGEMM_", "TORCH_MKLDNN_", "TORCH_LINEAR_"),
    *("NPY_", "GLIBC_TUNABLES"),
)
HARMLESS = ("VERBOSE", "NUM_THREADS", "DYNAMIC", "JIT_DUMP", "JIT_PROFILE", "CAPACITY")

MEASURED = NETWORKS | HEAVIEST
SIDES = {  # channels, pixels
    "mnist_mlp": (1, 28),
    "fashion_cnn": (1, 28),
    "cifar_cnn": (3, 32),
    "varied_mlp": (1, 14),
    "varied_cnn": (3, 16),
}
IMAGES = 32  # of the measured step


@cache
def engine_fingerprint(precision: Precision = "fp32") -> str:
    """Of this process. Takes some milliseconds at the first call."""
    if precision == "bf16" and not torch.cpu._is_avx512_bf16_supported():
        raise ValueError("precision: bf16 needs a processor with AVX512-BF16; use fp32")
    parts = (
        f"engine {ENGINE_VERSION}",
        precision,
        f"torch {torch.__version__}",
        f"numpy {np.__version__}",
        " ".join(platform.libc_ver()).strip() or platform.system(),
        torch.backends.cpu.get_cpu_capability(),
        _processor(),
        *switches(os.environ),
        f"step {measured(precision)}",
    )
    return " | ".join(parts)


def switches(environment: Mapping[str, str]) -> list[str]:
    """The variables that are set and may choose kernels."""
    return [
        f"{name}={value}"
        for name, value in sorted(environment.items())
        if name.upper().startswith(SWITCHES) and not name.upper().endswith(HARMLESS)
    ]


def measured(precision: Precision) -> str:
    """A digest of what one step of every network makes of the same numbers."""
    digest = hashlib.sha256()
    with modes.of_the_engine(), modes.of_a_computation(precision):
        for name, (channels, side) in SIDES.items():
            for tensor in _step(MEASURED[name], channels, side):
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _step(network: Network, channels: int, side: int) -> list[Tensor]:
    """What an augmented, dropped-out step changes, and what the network then says."""
    draw = np.random.Generator(np.random.SFC64(0))
    labels = draw.integers(0, CLASSES, IMAGES)
    raw = draw.standard_normal((IMAGES, channels, side, side), dtype=np.float32)
    maps = draw_maps(draw, labels, "mnist", side, 1.0)
    images = augment(torch.from_numpy(raw).contiguous(memory_format=torch.channels_last), maps)
    kept = draw.random((IMAGES, network.dropout_units)) > 0.25
    weights = initial_weights(network, torch.Generator().manual_seed(0))
    statistics, moments = initial_statistics(network), torch.zeros(2, len(weights))
    replica = network.replica(weights, statistics)
    result = replica.gradient(
        images, torch.from_numpy(labels), torch.from_numpy(kept).float(), IMAGES
    )
    update(PLAN, [weights], [torch.cat(result.gradients)], [[m] for m in moments], steps=1)
    return [images, result.logits, weights, statistics, moments, replica.logits(images)]


PLAN = EpochPlan(
    optimizer="adamw",
    learning_rate=0.01,
    batch_size=IMAGES,
    weight_decay=0.01,
    dropout=0.25,
    augmentation=1.0,
)


@cache
def _processor() -> str:
    """The processor's model: oneDNN chooses its loops by instruction set and cache sizes."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return " ".join(named.get(k, "?") for k in ("model name", "cpu family", "model", "cache size"))
