"""The state of a cluster as named tensors and a value that JSON can carry, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ml_trainer_env.events import Settings
from ml_trainer_env.server.cluster.state import (
    Checkpoint,
    ClusterState,
    Fleet,
    Model,
    Shown,
    Window,
)
from ml_trainer_env.server.worlds import Sampler


class _Checkpoint(BaseModel):
    step: int
    updates: int
    sampler: Sampler
    damaged: bool


class _Window(BaseModel):
    updates: int
    apart: tuple[int, ...]
    sampler: Sampler
    settings: Settings
    shown: tuple[Shown, ...]


class Packed(BaseModel):
    """All of a state but its tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    updates: int
    fleet: Fleet
    sampler: Sampler
    quarantined: frozenset[int]
    step: int
    made: int
    seconds: float
    checkpoints: tuple[_Checkpoint, ...]
    apart: tuple[int, ...]
    struck: int
    lost: tuple[int, ...]
    wrong_rate: tuple[float, int] | None
    window: _Window | None


def pack(state: ClusterState) -> tuple[Packed, dict[str, Tensor]]:
    """What `unpack` takes."""
    tensors = _tensors("model", state.model)
    for number, each in enumerate(state.checkpoints):
        tensors |= _tensors(f"checkpoint.{number}", each.model)
    tensors |= _apart("apart", state.apart)
    window = state.window
    if window:
        tensors |= _tensors("window", window.model) | _apart("window.apart", window.apart)
    packed = Packed(
        updates=state.model.updates,
        fleet=state.fleet,
        sampler=state.sampler,
        quarantined=state.quarantined,
        step=state.step,
        made=state.made,
        seconds=state.seconds,
        checkpoints=tuple(
            _Checkpoint(
                step=each.step,
                updates=each.model.updates,
                sampler=each.sampler,
                damaged=each.damaged,
            )
            for each in state.checkpoints
        ),
        apart=tuple(state.apart),
        struck=state.struck,
        lost=state.lost,
        wrong_rate=state.wrong_rate,
        window=window
        and _Window(
            updates=window.model.updates,
            apart=tuple(window.apart),
            sampler=window.sampler,
            settings=window.settings,
            shown=window.shown,
        ),
    )
    return packed, tensors


def unpack(packed: Packed, tensors: dict[str, Tensor]) -> ClusterState:
    """What `pack` was given. Raises KeyError for a tensor that is missing."""
    window = packed.window
    return ClusterState(
        model=_model("model", tensors, packed.updates),
        fleet=packed.fleet,
        sampler=packed.sampler,
        quarantined=packed.quarantined,
        step=packed.step,
        made=packed.made,
        seconds=packed.seconds,
        checkpoints=tuple(
            Checkpoint(
                each.step,
                _model(f"checkpoint.{number}", tensors, each.updates),
                each.sampler,
                each.damaged,
            )
            for number, each in enumerate(packed.checkpoints)
        ),
        apart=_weights("apart", tensors, packed.apart),
        struck=packed.struck,
        lost=packed.lost,
        wrong_rate=packed.wrong_rate,
        window=window
        and Window(
            _model("window", tensors, window.updates),
            _weights("window.apart", tensors, window.apart),
            window.sampler,
            window.settings,
            window.shown,
        ),
    )


def _tensors(name: str, model: Model) -> dict[str, Tensor]:
    """Copies: a file of tensors holds none twice."""
    first, second = model.moments
    return {
        f"{name}.weights": model.weights.clone(),
        f"{name}.first": first.clone(),
        f"{name}.second": second.clone(),
    }


def _model(name: str, tensors: dict[str, Tensor], updates: int) -> Model:
    moments = tensors[f"{name}.first"], tensors[f"{name}.second"]
    return Model(tensors[f"{name}.weights"], moments, updates)


def _apart(name: str, apart: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Copies, too: a window often began with the weights that a host still has."""
    return {f"{name}.{number}": weights.clone() for number, weights in enumerate(apart.values())}


def _weights(name: str, tensors: dict[str, Tensor], hosts: Sequence[int]) -> dict[int, Tensor]:
    return {host: tensors[f"{name}.{number}"] for number, host in enumerate(hosts)}
