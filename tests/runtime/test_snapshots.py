"""The store of states: the bits that were put or nothing, within its budgets."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from states import PLAN, SIZE, plan, trained, untrained, value

from ml_trainer_env.server import trainer
from ml_trainer_env.server.runtime import snapshots, state_bytes
from ml_trainer_env.server.runtime.snapshots import SnapshotFolder, Snapshots
from ml_trainer_env.server.runtime.state_bytes import UnreadableState
from ml_trainer_env.server.tasks import TASKS
from ml_trainer_env.server.trainer import TrainingState, Workload

WEIGHTS = SIZE * 4  # bytes
EPOCH = 3 * WEIGHTS + 7 * 4  # bytes of a state whose best checkpoint is its current one
ROOMY = 10**9


def lineage(length: int, seed: int = 0) -> list[TrainingState]:
    """States one epoch apart, each better than the one before."""
    states = [untrained(seed=seed)]
    for epoch in range(length):
        states.append(trained(states[-1], PLAN, accuracy=(epoch + 1) / 100))
    return states[1:]


def worse(state: TrainingState) -> TrainingState:
    """One epoch on, with `state` as the best."""
    return trained(state, PLAN, accuracy=0.0)


# As bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", TASKS)
def test_a_fresh_state_survives_as_bytes(task_id: str) -> None:
    task = TASKS[task_id]
    state = trainer.start(Workload(task.network, task.dataset, task.shards, task.version), 7)
    assert value(state_bytes.unpack(state_bytes.pack(state))) == value(state)


def test_a_trained_state_survives_as_bytes() -> None:
    best = lineage(2)[-1]
    for state in (best, worse(best)):
        again = state_bytes.unpack(state_bytes.pack(state))
        assert value(again) == value(state)
        assert (again.best_checkpoint is again.current) == (state is best)


def test_a_shared_checkpoint_is_written_once() -> None:
    best = lineage(1)[0]
    assert len(state_bytes.pack(worse(best))) - len(state_bytes.pack(best)) > WEIGHTS


@pytest.mark.parametrize("damage", [b"", b"abc", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_other_bytes_are_no_state(damage: bytes) -> None:
    with pytest.raises(UnreadableState):
        state_bytes.unpack(damage)


def test_cut_short_it_is_no_state() -> None:
    data = state_bytes.pack(lineage(1)[0])
    for length in range(0, len(data), 97):
        with pytest.raises(UnreadableState):
            state_bytes.unpack(data[:length])


# In memory ------------------------------------------------------------------------------------


def test_what_was_put_is_found_and_nothing_else() -> None:
    store = Snapshots(ROOMY)
    first, second = lineage(2)
    store.put(first)
    assert store.get(first.key) is first
    assert store.get(second.key) is None


def test_the_least_recently_used_goes_first() -> None:
    store = Snapshots(3 * EPOCH)
    first, second, third, fourth = lineage(4)
    for state in (first, second, third):
        store.put(state)
    store.get(first.key)
    store.put(fourth)
    assert store.get(second.key) is None
    assert {first, third, fourth} == {store.get(s.key) for s in (first, third, fourth)}
    assert store.used == 3 * EPOCH


def test_the_budget_counts_a_shared_tensor_once() -> None:
    store = Snapshots(ROOMY)
    best = lineage(1)[0]
    after = worse(best)  # holds `best` as its best checkpoint
    store.put(best)
    assert store.used == EPOCH
    store.put(after)
    assert store.used == 2 * EPOCH
    store.put(after)
    assert store.used == 2 * EPOCH


def test_a_tensor_weighs_until_its_last_holder_goes() -> None:
    best = lineage(1)[0]
    after = worse(best)
    store = Snapshots(2 * EPOCH - 1)
    store.put(best)
    store.put(after)  # needs the room of `best`, whose weights it holds
    assert store.get(best.key) is None
    assert store.used == EPOCH + WEIGHTS + 7 * 4


def test_without_a_budget_nothing_is_kept() -> None:
    store = Snapshots(0)
    state = lineage(1)[0]
    store.put(state)
    assert store.get(state.key) is None
    assert (len(store), store.used) == (0, 0)


def test_any_thread_may_use_it(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path, 9 * EPOCH)
    store = Snapshots(3 * EPOCH, folder)
    states = {state.key: value(state) for state in lineage(12)}
    everything = lineage(12)

    def use(thread: int) -> int:
        for turn in range(60):
            state = everything[(turn * (thread + 1)) % 12]
            found = store.get(state.key)
            assert found is None or value(found) == states[state.key]
            store.put(state)
        return store.used

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(use, range(4))) <= 3 * EPOCH
    kept = [store.get(state.key) for state in everything]
    assert any(kept)
    files = list(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in files) == folder.used <= 9 * EPOCH


# In a folder ----------------------------------------------------------------------------------


def test_what_leaves_memory_is_read_from_the_folder(tmp_path: Path) -> None:
    store = Snapshots(EPOCH, SnapshotFolder(tmp_path, ROOMY))
    first, second = lineage(2)
    store.put(first)
    store.put(second)
    again = store.get(first.key)
    assert again is not None
    assert again is not first
    assert value(again) == value(first)
    assert store.get(first.key) is again  # back in memory
    assert len(store) == 1


def test_the_folder_keeps_to_its_budget(tmp_path: Path) -> None:
    states = lineage(5)
    size = len(state_bytes.pack(states[-1])) + 32
    folder = SnapshotFolder(tmp_path, 2 * size)
    for state in states[:2]:
        folder.put(state)
    folder.get(states[0].key)
    folder.put(states[2])
    assert folder.get(states[1].key) is None
    assert folder.get(states[0].key) is not None
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) == folder.used <= 2 * size


def test_a_state_larger_than_the_folder_leaves_the_others(tmp_path: Path) -> None:
    small, large = lineage(1)[0], worse(lineage(1)[0])
    folder = SnapshotFolder(tmp_path, len(state_bytes.pack(small)) + 32)
    folder.put(small)
    folder.put(large)
    assert folder.get(large.key) is None
    assert folder.get(small.key) is not None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_file_is_absent(tmp_path: Path, damage: str) -> None:
    folder = SnapshotFolder(tmp_path, ROOMY)
    state, other = lineage(2)
    folder.put(state)
    folder.put(other)
    file, others = (tmp_path / f"{s.key}{snapshots.SUFFIX}" for s in (state, other))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1  # one bit of a weight
    damaged = {"cut": content[:-1], "flip": content, "empty": b"", "other": others.read_bytes()}
    file.write_bytes(damaged[damage])
    assert folder.get(state.key) is None
    assert not file.exists()
    folder.put(state)  # trained again
    again = folder.get(state.key)
    assert again is not None
    assert value(again) == value(state)


def test_the_next_process_goes_on_with_the_files(tmp_path: Path) -> None:
    first, second, third = lineage(3)
    folder = SnapshotFolder(tmp_path, ROOMY)
    for age, state in ((3, first), (1, second), (2, third)):
        folder.put(state)
        stamp = 1e9 - age
        os.utime(tmp_path / f"{state.key}{snapshots.SUFFIX}", (stamp, stamp))
    (tmp_path / f"half{snapshots.UNFINISHED}").write_bytes(b"of a process that was killed")
    folder = SnapshotFolder(tmp_path, 2 * (len(state_bytes.pack(third)) + 32))
    assert folder.get(first.key) is None  # the least recently used
    for state in (second, third):
        again = folder.get(state.key)
        assert again is not None
        assert value(again) == value(state)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_that_cannot_be_written_costs_only_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = SnapshotFolder(tmp_path, ROOMY)
    state = lineage(1)[0]
    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", full)
        folder.put(state)
    assert list(tmp_path.iterdir()) == []
    assert folder.get(state.key) is None
    folder.put(state)
    assert folder.get(state.key) is not None


def test_learning_rates_apart_are_other_states() -> None:
    store = Snapshots(ROOMY)
    start = untrained()
    store.put(trained(start, plan(0.1)))
    assert store.get(trainer.next_key(start.key, plan(0.2))) is None
