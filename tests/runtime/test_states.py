"""Where states lie: found by key, within a budget, in memory or in a folder that others share."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from executors import PLAN, after, begin

from ml_trainer_env.server.runtime import states as places
from ml_trainer_env.server.runtime.nameless import nameless_file
from ml_trainer_env.server.runtime.states import LOOK_AROUND, SUFFIX, UNFINISHED, WRITTEN, States

SIZE = 100  # bytes of a state
ROOMY = 10**9


def put(states: States, key: str, size: int = SIZE, left: str | None = None) -> None:
    """As a worker does: the file is written, and then it is the store's."""
    content = key.encode().ljust(size)
    if states.folder:
        aside = states.folder / f"{uuid.uuid4()}{UNFINISHED}"
        aside.write_bytes(content)
        aside.replace(states.folder / f"{key}{SUFFIX}")
        states.put(key, size, None, left)
        return
    with nameless_file() as file:
        file.write(content)
        file.flush()
        states.put(key, size, os.dup(file.fileno()), left)


def read(states: States, key: str) -> str | None:
    """What the file of a state holds; None where there is none."""
    descriptor = states.open(key)
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, 10_000, 0).decode().rstrip()
    finally:
        os.close(descriptor)


def kept(states: States, keys: str) -> str:
    """Which of these are at hand; looking changes what was used last."""
    return "".join(key for key in keys if read(states, key) == key)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


Make = Callable[[int], States]


@pytest.fixture(params=["memory", "folder"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Stores with these budgets: every test of these holds in memory and in a folder."""
    folder = tmp_path if request.param == "folder" else None
    return lambda budget: States(budget, folder)


# In memory and in a folder --------------------------------------------------------------------


def test_what_was_put_is_found_and_nothing_else(make: Make) -> None:
    states = make(ROOMY)
    put(states, "a")
    assert read(states, "a") == "a"
    assert read(states, "b") is None
    assert (len(states), states.used) == (1, SIZE)


def test_the_least_recently_used_goes_first(make: Make) -> None:
    states = make(3 * SIZE)
    for key in "abc":
        put(states, key)
    assert read(states, "a") == "a"
    put(states, "d")
    assert kept(states, "abcd") == "acd"
    assert states.used == 3 * SIZE


def test_what_a_training_left_behind_goes_before(make: Make) -> None:
    """So that a long training keeps one state in place of those that others need."""
    states = make(3 * SIZE)
    for key in "ab":
        put(states, key)
    for key, left in ("cb", "dc", "ed", "fe"):
        put(states, key, left=left)
    assert kept(states, "abcdef") == "abf"


def test_the_budget_holds_for_states_of_any_size(make: Make) -> None:
    states = make(5 * SIZE)
    for number, size in enumerate([3, 2, 1, 4, 2, 2, 5, 1, 3]):
        put(states, f"{number}", size * SIZE)
        assert states.used <= 5 * SIZE
        assert read(states, f"{number}") == f"{number}"


def test_a_state_put_again_counts_once(make: Make) -> None:
    states = make(ROOMY)
    put(states, "a")
    before = open_files()
    put(states, "a")
    assert (len(states), states.used, open_files()) == (1, SIZE, before)


def test_without_a_budget_nothing_is_kept(make: Make) -> None:
    states = make(0)
    before = open_files()
    put(states, "a")
    assert read(states, "a") is None
    assert (len(states), states.used, open_files()) == (0, 0, before)


def test_a_state_larger_than_the_budget_leaves_the_others(make: Make) -> None:
    states = make(2 * SIZE)
    put(states, "a")
    put(states, "b")
    put(states, "large", 2 * SIZE + 1, left="b")
    assert read(states, "large") is None
    assert kept(states, "ab") == "ab"


def test_removed_it_is_gone_and_can_be_put_again(make: Make) -> None:
    states = make(ROOMY)
    put(states, "a")
    states.remove("a")
    states.remove("never put")
    assert read(states, "a") is None
    assert states.used == 0
    put(states, "a")
    assert read(states, "a") == "a"


def test_whoever_opened_a_state_keeps_it(make: Make) -> None:
    states = make(SIZE)
    put(states, "a")
    descriptor = states.open("a")
    assert descriptor is not None
    put(states, "b")
    assert read(states, "a") is None
    assert os.pread(descriptor, 1, 0) == b"a"
    os.close(descriptor)


def test_the_nearest_is_the_latest_on_the_way(make: Make) -> None:
    states = make(ROOMY)
    run = after(begin(), [PLAN] * 4)
    keys = run.keys()
    with states.nearest(run) as nearest:
        assert (nearest.epoch, nearest.key, nearest.descriptor) == (0, None, None)
    for epoch in (1, 3):
        put(states, keys[epoch])
    put(states, after(begin(1), [PLAN] * 4).key)  # of another run
    for length, epoch in ((4, 3), (3, 3), (2, 1), (1, 1)):
        with states.nearest(after(begin(), [PLAN] * length)) as nearest:
            assert (nearest.epoch, nearest.key) == (epoch, keys[epoch])
            assert nearest.descriptor is not None
            assert os.pread(nearest.descriptor, 64, 0).decode() == keys[epoch]
    with states.nearest(begin()) as nearest:
        assert (nearest.epoch, nearest.key) == (0, None)


def test_no_descriptor_is_left_behind(make: Make) -> None:
    before = open_files()
    states = make(4 * SIZE)
    run = begin()
    for _ in range(30):
        following = after(run, [PLAN])
        put(states, following.key, left=run.key)
        run = following
        for each in (run, begin(7)):
            with states.nearest(each):
                pass
    assert open_files() - before <= 4
    states.close()
    assert open_files() == before


def test_any_thread_may_use_it(make: Make) -> None:
    before = open_files()
    states = make(9 * SIZE)
    most = 0

    def use(thread: int) -> None:
        nonlocal most
        for turn in range(60):
            key = "abcdefghijkl"[turn * (thread + 1) % 12]
            assert read(states, key) in (None, key)
            put(states, key)
            if turn % 7 == 0:
                states.remove(key)
            most = max(most, states.used)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert most <= 9 * SIZE
    assert states.used == len(states) * SIZE
    states.close()
    assert open_files() == before


# In memory ------------------------------------------------------------------------------------


def test_sockets_keep_three_quarters_of_the_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = SimpleNamespace(RLIMIT_NOFILE=0, getrlimit=lambda _: (14, 14))
    monkeypatch.setattr(places, "resource", limits)
    states = States(ROOMY)
    for key in "abcde":
        put(states, key)
    assert (len(states), kept(states, "abcde")) == (3, "cde")
    states.close()


# In a folder ----------------------------------------------------------------------------------


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_files_are_those_of_the_states_at_hand(tmp_path: Path) -> None:
    states = States(2 * SIZE, tmp_path)
    for key in "abc":
        put(states, key)
    assert files(tmp_path) == {f"b{SUFFIX}", f"c{SUFFIX}"}
    states.remove("b")
    assert files(tmp_path) == {f"c{SUFFIX}"}
    states.close()
    assert files(tmp_path) == {f"c{SUFFIX}"}  # for the next process


def test_the_next_process_goes_on_with_the_files(tmp_path: Path) -> None:
    states = States(ROOMY, tmp_path / "states")
    for key in "abcd":
        put(states, key)
    for key, age in zip("abcd", (3, 1, 4, 2), strict=True):
        stamp = time.time() - 1000 * age
        os.utime(tmp_path / "states" / f"{key}{SUFFIX}", (stamp, stamp))
    assert read(states, "c") == "c"  # it is the last used now
    again = States(3 * SIZE, tmp_path / "states")
    assert files(tmp_path / "states") == {f"{key}{SUFFIX}" for key in "bcd"}
    assert (len(again), again.used) == (3, 3 * SIZE)
    put(again, "e")
    assert kept(again, "abcde") == "bce"


def test_what_a_killed_process_had_begun_is_removed(tmp_path: Path) -> None:
    """What another one is writing just now is not."""
    killed, busy = (tmp_path / f"{name}{UNFINISHED}" for name in ("killed", "busy"))
    for file in (killed, busy):
        file.write_bytes(b"half a state")
    long_ago = time.time() - 2 * WRITTEN
    os.utime(killed, (long_ago, long_ago))
    assert len(States(ROOMY, tmp_path)) == 0
    assert files(tmp_path) == {busy.name}


def test_two_share_a_folder(tmp_path: Path) -> None:
    one, other = States(3 * SIZE, tmp_path), States(3 * SIZE, tmp_path)
    for key in "ab":
        put(one, key)
    assert kept(other, "ab") == "ab"  # written after it had looked
    put(other, "a")  # the same again
    for key in "cd":
        put(other, key)
        assert other.used <= 3 * SIZE
    assert read(one, "b") is None  # the other had to make room
    assert kept(one, "acd") == kept(other, "acd") == "acd"
    assert one.used <= 3 * SIZE


def test_what_another_process_wrote_counts_when_it_is_used(tmp_path: Path) -> None:
    states = States(2 * SIZE, tmp_path)
    for key in "ab":
        put(states, key)
    put(States(ROOMY, tmp_path), "c")
    assert read(states, "c") == "c"
    assert states.used == 2 * SIZE
    assert kept(states, "abc") == "bc"


def test_what_others_put_is_looked_for_now_and_then(tmp_path: Path) -> None:
    """So that two who use other states do not fill the folder twice."""
    states, other = States(5 * SIZE, tmp_path), States(5 * SIZE, tmp_path)
    for number in range(3 * LOOK_AROUND):
        put(states, f"ours {number}")
        put(other, f"theirs {number}")
        assert sum(1 for _ in tmp_path.iterdir()) <= 10 + LOOK_AROUND
    for number in range(LOOK_AROUND):
        put(states, f"later {number}")
    assert sum(1 for _ in tmp_path.iterdir()) == 5


def test_files_may_be_removed_under_our_feet(tmp_path: Path) -> None:
    states = States(3 * SIZE, tmp_path)
    for key in "abc":
        put(states, key)
    for file in tmp_path.iterdir():
        file.unlink()
    assert kept(states, "a") == ""
    assert states.used == 2 * SIZE
    put(states, "d")
    put(states, "e")  # makes room by removing what is not there
    assert kept(states, "abcde") == "de"


def test_times_that_cannot_be_set_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of another user."""

    def refused(*_: object) -> None:
        raise PermissionError

    states = States(ROOMY, tmp_path)
    put(states, "a")
    monkeypatch.setattr(os, "utime", refused)
    before = open_files()
    assert read(states, "a") == "a"
    assert open_files() == before


def test_a_crowd_on_one_folder(tmp_path: Path) -> None:
    """What is read is what was put, whoever removes it meanwhile."""
    stores = [States(3 * SIZE, tmp_path) for _ in range(2)]
    together = threading.Barrier(4)

    def use(thread: int) -> None:
        states = stores[thread % 2]
        together.wait(20)
        for turn in range(100):
            key = "abcdef"[turn * (thread + 1) % 6]
            assert read(states, key) in (None, key)
            put(states, key)

    before = open_files()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert open_files() == before
    assert all(states.used <= 3 * SIZE for states in stores)
