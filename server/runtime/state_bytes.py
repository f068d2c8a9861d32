"""A training state as bytes and back, bit for bit: safetensors, the rest as JSON in its header.

No pickle: bytes from elsewhere can be wrong, but they cannot run code.
"""

from __future__ import annotations

import json

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from ml_trainer_env.models import EpochRecord
from ml_trainer_env.server.trainer import Checkpoint, Precision, TrainingState, Workload

_LENGTH = 8  # bytes before safetensors' header: its length, little-endian


class UnreadableState(ValueError):
    """These bytes are no training state."""


class _Header(BaseModel):
    """All of a state but its tensors. JSON keeps every bit of a float."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    workload: Workload
    seed: int
    precision: Precision
    history: tuple[EpochRecord, ...]
    best_is_current: bool
    optimizer: str | None
    moments: int
    steps: int


def pack(state: TrainingState) -> bytes:
    """The best checkpoint is often the current one, and is then written once."""
    best_is_current = state.best_checkpoint is state.current
    header = _Header(
        key=state.key,
        workload=state.workload,
        seed=state.seed,
        precision=state.precision,
        history=state.history,
        best_is_current=best_is_current,
        optimizer=state.optimizer,
        moments=len(state.moments),
        steps=state.steps,
    )
    tensors = {"weights": state.current.weights, "statistics": state.current.statistics}
    if not best_is_current:
        tensors["best.weights"] = state.best_checkpoint.weights
        tensors["best.statistics"] = state.best_checkpoint.statistics
    tensors |= {f"moments.{number}": moment for number, moment in enumerate(state.moments)}
    return safetensors.torch.save(tensors, {"state": header.model_dump_json()})


def unpack(data: bytes) -> TrainingState:
    """What `pack` was given. Raises `UnreadableState`."""
    try:
        tensors = safetensors.torch.load(data)
        end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
        metadata = json.loads(data[_LENGTH:end])["__metadata__"]
        header = _Header.model_validate_json(metadata["state"])
        return _state(header, tensors)
    except (SafetensorError, ValidationError, KeyError, ValueError) as error:
        raise UnreadableState(f"not a training state: {error}") from error


def _state(header: _Header, tensors: dict[str, Tensor]) -> TrainingState:
    # The clones lie where PyTorch puts its tensors, as in the state that was packed: with another
    # alignment a matrix product may give other bits.
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    current = Checkpoint(own["weights"], own["statistics"])
    best = current
    if not header.best_is_current:
        best = Checkpoint(own["best.weights"], own["best.statistics"])
    return TrainingState(
        key=header.key,
        workload=header.workload,
        seed=header.seed,
        precision=header.precision,
        history=header.history,
        current=current,
        best_checkpoint=best,
        optimizer=header.optimizer,
        moments=tuple(own[f"moments.{number}"] for number in range(header.moments)),
        steps=header.steps,
    )
