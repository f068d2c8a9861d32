"""A state in a file: its bits, or nothing at all."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from pathlib import Path
from typing import get_args

import pytest
from states import begin, lineage, small, trained, untrained, value

from ml_trainer_env.models import EpochPlan, Optimizer
from ml_trainer_env.server import trainer
from ml_trainer_env.server.engine import varied
from ml_trainer_env.server.runtime import state_files
from ml_trainer_env.server.runtime.state_files import UnreadableState
from ml_trainer_env.server.runtime.states import SUFFIX
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.trainer import TrainingState

WEIGHTS = 4 * len(untrained().current.weights)  # bytes


def network(state: object) -> TrainingState:
    assert isinstance(state, TrainingState)
    return state


def through_a_file(state: TrainingState, folder: Path | None = None) -> TrainingState:
    size, descriptor = state_files.write(state, folder)
    if folder:
        assert descriptor is None
        descriptor = os.open(folder / f"{state.key}{SUFFIX}", os.O_RDONLY)
    assert descriptor is not None
    try:
        assert os.fstat(descriptor).st_size == size
        return network(state_files.read(descriptor, state.key))
    finally:
        os.close(descriptor)


def content(state: TrainingState) -> bytes:
    _, descriptor = state_files.write(state, None)
    assert descriptor is not None
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def read(written: bytes, key: str) -> TrainingState:
    with tempfile.TemporaryFile() as file:
        file.write(written)
        file.flush()
        return network(state_files.read(file.fileno(), key))


def worse(state: TrainingState) -> TrainingState:
    """One epoch on, with `state` as the best."""
    return trained(state, accuracy=0.0)


# Bit for bit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", TASKS)
def test_a_fresh_state_survives(tmp_path: Path, task_id: str) -> None:
    state = begin(task_id, 7)
    assert value(through_a_file(state)) == value(state)
    assert value(through_a_file(state, tmp_path)) == value(state)


@pytest.mark.parametrize("optimizer", get_args(Optimizer))
@pytest.mark.parametrize("task_id", TASKS)
def test_a_training_goes_on_from_a_file_as_if_it_had_not_been_one(
    monkeypatch: pytest.MonkeyPatch, task_id: str, optimizer: Optimizer
) -> None:
    """Better epochs, a worse one, and one that diverged: after each of them."""
    monkeypatch.setattr(varied, "resident", small)
    rates = [0.01, 0.002, 0.3, 1e9, 0.001]
    state = kept = begin(task_id, 3)
    for rate in rates:
        plan = EpochPlan(
            optimizer=optimizer,
            learning_rate=rate,
            batch_size=64,
            weight_decay=0.01,
            dropout=0.2,
            augmentation=0.5,
        )
        state = trainer.advance(state, plan)
        kept = through_a_file(trainer.advance(kept, plan))
        assert value(kept) == value(state)
        assert (kept.best_checkpoint is kept.current) == (state.best_checkpoint is state.current)
    assert any(record.diverged for record in state.run.history)
    assert trainer.test_accuracy(kept) == trainer.test_accuracy(state)


def test_a_shared_checkpoint_is_written_once() -> None:
    best = lineage(1)[0]
    after = worse(best)
    assert len(content(after)) - len(content(best)) > WEIGHTS
    again = through_a_file(best)
    assert again.best_checkpoint is again.current
    again = through_a_file(after)
    assert again.best_checkpoint is not again.current
    assert value(again) == value(after)


# Damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [b"", b"abc", b"\xff" * 100, b"\0\0\0\0", b"\x02\0\0\0\0\0\0\0{}", b"\0" * 10_000]
)
def test_other_bytes_are_no_state(damage: bytes) -> None:
    with pytest.raises(UnreadableState):
        state_files.unpack(damage)
    with pytest.raises(UnreadableState):
        read(damage, untrained().key)


def test_cut_short_it_is_no_state() -> None:
    state = lineage(1)[0]
    body, written = state_files.pack(state), content(state)
    for length in range(0, len(written), 97):
        with pytest.raises(UnreadableState):
            state_files.unpack(body[:length])
        with pytest.raises(UnreadableState):
            read(written[:length], state.key)


def test_one_bit_makes_it_no_state() -> None:
    state = worse(lineage(1)[0])
    written = content(state)
    for place in range(0, len(written), 997):
        flipped = bytearray(written)
        flipped[place] ^= 1
        with pytest.raises(UnreadableState):
            read(bytes(flipped), state.key)
    assert value(read(written, state.key)) == value(state)


def test_another_state_is_not_taken_for_this_one() -> None:
    one, other = lineage(2)
    with pytest.raises(UnreadableState, match="another state"):
        read(content(other), one.key)


def test_bytes_from_elsewhere_run_no_code(tmp_path: Path) -> None:
    """A pickle, as torch writes its files, would create this folder as it is read."""

    class Malice:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "it ran"),)

    written = io.BytesIO()
    pickle.dump(Malice(), written)
    state = lineage(1)[0]
    for bad in (written.getvalue(), content(state)[:4] + written.getvalue()):
        with pytest.raises(UnreadableState):
            read(bad, state.key)
        with pytest.raises(UnreadableState):
            state_files.unpack(bad)
    assert not list(tmp_path.iterdir())


# Files ----------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    state = lineage(1)[0]
    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            state_files.write(state, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert value(through_a_file(state, tmp_path)) == value(state)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_disk_that_fills_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_full_disk(**options: object) -> object:
        return _Full(tmp_path / "aside")

    monkeypatch.setattr(state_files.tempfile, "NamedTemporaryFile", on_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        state_files.write(lineage(1)[0], tmp_path)
    assert list(tmp_path.iterdir()) == []


class _Full(io.BufferedWriter):
    """A named file, all of whose bytes go to a full disk."""

    def __init__(self, place: Path) -> None:
        place.touch()
        super().__init__(io.FileIO("/dev/full", "w"))
        self._place = place

    @property
    def name(self) -> str:
        return str(self._place)


def test_a_folder_that_is_gone_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        state_files.write(lineage(1)[0], tmp_path / "gone")


def test_a_reader_sees_all_of_a_file_or_the_one_before(tmp_path: Path) -> None:
    state = lineage(1)[0]
    state_files.write(state, tmp_path)
    file = tmp_path / f"{state.key}{SUFFIX}"
    descriptor = os.open(file, os.O_RDONLY)
    state_files.write(state, tmp_path)  # by another process, just now
    assert os.fstat(descriptor).st_ino != file.stat().st_ino
    assert value(state_files.read(descriptor, state.key)) == value(state)
    os.close(descriptor)
