"""A training state in a file and back, bit for bit: safetensors, the rest as JSON in its header.

No pickle: bytes from elsewhere can be wrong, but they cannot run code. What is damaged, cut short
or not ours is `UnreadableState`, never another state.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import tempfile
import zlib
from pathlib import Path

import safetensors.torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from ml_trainer_env.server.cluster import packed as packed_cluster
from ml_trainer_env.server.cluster.packed import Packed
from ml_trainer_env.server.cluster.trained import ClusterTraining
from ml_trainer_env.server.runs import Run
from ml_trainer_env.server.runtime.nameless import nameless_file
from ml_trainer_env.server.runtime.states import SUFFIX, UNFINISHED
from ml_trainer_env.server.trainer import Checkpoint, TrainingState
from ml_trainer_env.server.trainings import State

_LENGTH = 8  # bytes before safetensors' header: its length, little-endian
_CHECKSUM = struct.Struct("<I")  # at the front of a file; against damage, not against malice


class UnreadableState(ValueError):
    """These bytes are no training state."""


class _Header(BaseModel):
    """All of a training state but its tensors. JSON keeps every bit of a float."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Run
    best_is_current: bool
    optimizer: str | None
    moments: int
    steps: int


class _ClusterHeader(BaseModel):
    """The same of a cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Run
    cluster: Packed


_HEADER: TypeAdapter[_Header | _ClusterHeader] = TypeAdapter(_Header | _ClusterHeader)


def pack(state: State) -> bytes:
    """The best checkpoint is often the current one, and is then written once."""
    if isinstance(state, ClusterTraining):
        packed, tensors = packed_cluster.pack(state.state)
        header = _ClusterHeader(run=state.run, cluster=packed)
        return safetensors.torch.save(tensors, {"state": header.model_dump_json()})
    best_is_current = state.best_checkpoint is state.current
    header = _Header(
        run=state.run,
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


def unpack(data: bytes) -> State:
    """What `pack` was given. Raises `UnreadableState`."""
    try:
        tensors = safetensors.torch.load(data)
        end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
        metadata = json.loads(data[_LENGTH:end])["__metadata__"]
        header = _HEADER.validate_json(metadata["state"])
        return _state(header, tensors)
    except (SafetensorError, ValidationError, KeyError, ValueError) as error:
        raise UnreadableState(f"not a training state: {error}") from error


def unpack_of(data: bytes, key: str) -> State:
    """The same, of the state with this key. Raises `UnreadableState` for another one."""
    state = unpack(data)
    if state.key != key:
        raise UnreadableState("it holds another state")
    return state


def _state(header: _Header | _ClusterHeader, tensors: dict[str, Tensor]) -> State:
    # The clones lie where PyTorch puts its tensors, as in the state that was packed: with another
    # alignment a matrix product may give other bits.
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    if isinstance(header, _ClusterHeader):
        return ClusterTraining(header.run, packed_cluster.unpack(header.cluster, own))
    current = Checkpoint(own["weights"], own["statistics"])
    best = current
    if not header.best_is_current:
        best = Checkpoint(own["best.weights"], own["best.statistics"])
    return TrainingState(
        run=header.run,
        current=current,
        best_checkpoint=best,
        optimizer=header.optimizer,
        moments=tuple(own[f"moments.{number}"] for number in range(header.moments)),
        steps=header.steps,
    )


def write(state: State, folder: Path | None) -> tuple[int, int | None]:
    """Put `state` into a file: its bytes, and the descriptor of one that has no name.

    In a folder it is written aside and then into place: whoever reads sees all of it or nothing.
    Raises `OSError`.
    """
    body = pack(state)
    parts = (_CHECKSUM.pack(zlib.crc32(body)), body)
    size = sum(map(len, parts))
    if folder is None:
        with nameless_file() as file:
            file.writelines(parts)
            file.flush()
            return size, os.dup(file.fileno())
    with tempfile.NamedTemporaryFile(dir=folder, suffix=UNFINISHED, delete=False) as aside:
        try:
            aside.writelines(parts)
            aside.close()
            Path(aside.name).replace(folder / f"{state.key}{SUFFIX}")
        except OSError:
            Path(aside.name).unlink(missing_ok=True)
            raise
    return size, None


def read(descriptor: int, key: str) -> State:
    """The state with this key. Raises `UnreadableState` where the file holds something else."""
    try:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content:
            checksum, body = content[: _CHECKSUM.size], content[_CHECKSUM.size :]
    except (ValueError, OSError) as error:  # an empty file
        raise UnreadableState(f"not a training state: {error}") from error
    if checksum != _CHECKSUM.pack(zlib.crc32(body)):
        raise UnreadableState("its checksum is wrong")
    return unpack_of(body, key)
