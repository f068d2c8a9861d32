"""The limits of a container's processor time, read off trees of files as systems lay them out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_trainer_env.server.machine import quota
from ml_trainer_env.server.runtime import cores

V2_MOUNT = "30 23 0:26 {group} {place} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "33 24 0:29 {group} {place} rw,nosuid shared:9 master:1 - cgroup cgroup rw,cpu,cpuacct"
OTHERS = """23 1 0:2 / /proc rw - proc proc rw
34 24 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
35 24 0:31 /a b /odd\\040place rw - cgroup cgroup rw,memory"""
V1_PLACE, V2_PLACE = "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup"


def v2(group: str = "/", place: str = V2_PLACE) -> str:
    return V2_MOUNT.format(group=group, place=place)


def v1(group: str = "/", place: str = V1_PLACE) -> str:
    return V1_MOUNT.format(group=group, place=place)


def lay_out(root: Path, own: str, mounts: str, limits: Mapping[str, str]) -> None:
    """`limits`: by folder, `QUOTA PERIOD`; written as the version of its hierarchy has it."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    (root / "proc/self/mountinfo").write_text(f"{OTHERS}\n{mounts}\n")
    for name, limit in limits.items():
        folder = root / name.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        if "cpu," in name:
            given, period = limit.split()
            (folder / "cpu.cfs_quota_us").write_text(given + "\n")
            (folder / "cpu.cfs_period_us").write_text(period + "\n")
        else:
            (folder / "cpu.max").write_text(limit + "\n")


LAYOUTS: dict[str, tuple[str, str, dict[str, str], float | None]] = {
    "v2, the root of a namespace": ("0::/", v2(), {V2_PLACE: "150000 100000"}, 1.5),
    "v2, below systemd": (
        "0::/system.slice/ml.service",
        v2(),
        {f"{V2_PLACE}/system.slice/ml.service": "200000 100000"},
        2.0,
    ),
    "v2, the limit is an ancestor's": (
        "0::/user.slice/user-1.slice/session",
        v2(),
        {
            f"{V2_PLACE}/user.slice": "300000 100000",
            f"{V2_PLACE}/user.slice/user-1.slice": "50000 100000",
            f"{V2_PLACE}/user.slice/user-1.slice/session": "max 100000",
        },
        0.5,
    ),
    "v2, the ancestor is smaller than the own": (
        "0::/a/b",
        v2(),
        {f"{V2_PLACE}/a": "100000 100000", f"{V2_PLACE}/a/b": "400000 100000"},
        1.0,
    ),
    "v2, another period": ("0::/", v2(), {V2_PLACE: "25000 10000"}, 2.5),
    "v2, no limit": ("0::/", v2(), {V2_PLACE: "max 100000"}, None),
    "v2, a group outside of the namespace": (
        "0::/../../elsewhere",
        v2(),
        {V2_PLACE: "100000 100000"},
        1.0,
    ),
    "v2, only the own group is mounted": (
        "0::/kubepods/pod1/c1",
        v2(group="/kubepods/pod1/c1"),
        {V2_PLACE: "100000 100000"},
        1.0,
    ),
    "v2, mounted at an odd place": (
        "0::/g",
        v2(place="/mnt/my\\040groups"),
        {"/mnt/my groups/g": "100000 100000"},
        1.0,
    ),
    "v1, the root of a namespace": (
        "4:cpu,cpuacct:/\n1:name=systemd:/",
        v1(),
        {V1_PLACE: "250000 100000"},
        2.5,
    ),
    "v1, only the own group is mounted": (
        "11:cpuset:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/docker/abc",
        v1(group="/docker/abc"),
        {V1_PLACE: "100000 100000"},
        1.0,
    ),
    "v1, the whole tree is mounted": (
        "4:cpuacct,cpu:/docker/abc",
        v1(),
        {f"{V1_PLACE}/docker/abc": "100000 50000", f"{V1_PLACE}/docker": "-1 100000"},
        2.0,
    ),
    "v1, no limit": ("4:cpu,cpuacct:/", v1(), {V1_PLACE: "-1 100000"}, None),
    "both versions, the limit is of version 1": (
        "4:cpu:/x\n0::/x",
        f"{v1()}\n{v2(place='/sys/fs/cgroup/unified')}",
        {f"{V1_PLACE}/x": "100000 100000"},
        1.0,
    ),
    "nothing is mounted": ("0::/", "", {}, None),
    "garbage": ("0::\n\n:::\nnonsense", f"{v2()}\n- - -\nx", {V2_PLACE: "lots of it"}, None),
    "garbage in v1": ("4:cpu,cpuacct:/", v1(), {V1_PLACE: "0 0"}, None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_smallest_limit_that_can_be_seen_counts(tmp_path: Path, layout: str) -> None:
    own, mounts, limits, expected = LAYOUTS[layout]
    lay_out(tmp_path, own, mounts, limits)
    assert quota.processors(tmp_path) == expected


def test_a_system_without_groups_has_no_limit(tmp_path: Path) -> None:
    assert quota.processors(tmp_path) is None


@given(st.lists(st.none() | st.integers(1_000, 6_400_000), min_size=1, max_size=5), st.booleans())
def test_of_any_chain_of_groups_the_smallest_counts(limits: list[int | None], second: bool) -> None:
    groups = ["/".join(["", "a", "b", "c", "d"][: depth + 1]) for depth in range(len(limits))]
    place = V2_PLACE if second else V1_PLACE
    none = "max" if second else "-1"
    texts = [f"{none if limit is None else limit} 100000" for limit in limits]
    own = ("0::" if second else "4:cpu,cpuacct:") + (groups[-1] or "/")
    with TemporaryDirectory() as folder:
        root = Path(folder)
        written = {place + group: text for group, text in zip(groups, texts, strict=True)}
        lay_out(root, own, v2() if second else v1(), written)
        found = quota.processors(root)
    known = [limit / 100_000 for limit in limits if limit is not None]
    assert found == (min(known) if known else None)


@pytest.mark.parametrize(
    ("visible", "allowed", "asked", "used"),
    [
        *((64, 1.0, None, 1), (64, 1.99, None, 1), (64, 0.1, None, 1), (64, 2.0, None, 2)),
        *((2, 8.0, None, 2), (64, None, None, 64), (64, None, 3, 3), (2, None, 3, 2)),
        *((64, 4.5, 2, 2), (64, 1.0, 2, 1)),
    ],
)
def test_what_is_visible_allowed_and_asked_for_bound_each_other(
    monkeypatch: pytest.MonkeyPatch,
    visible: int,
    allowed: float | None,
    asked: int | None,
    used: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(visible)}, raising=False)
    monkeypatch.setattr(quota, "processors", lambda: allowed)
    assert cores.available(asked) == used
    assert cores.Cores(threads=2, total=cores.available(asked)).threads == min(2, used)


def test_whoever_trains_keeps_to_it() -> None:
    code = """
from ml_trainer_env.server.session import process
pool = process.pool()
pool.prepare()
runners = process.server_runner(), process.inline_runner()
print(len(pool.processes()), *(runner.cores.total for runner in runners))
"""
    variables = {"ML_TRAINER_CORES": "1", "ML_TRAINER_SHARING": "off"}
    told = subprocess.check_output([sys.executable, "-c", code], env=os.environ | variables)
    assert told.split() == [b"1", b"1", b"1"]
