"""How much processor time the control groups of this process allow: a container's CPU limit.

Linux, version 1 and 2 of control groups. A limit may be set on the process's own group and on every
group above it, of which a container sees some or none; the smallest that can be seen counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Mount(NamedTuple):
    """A hierarchy of groups, as it is mounted."""

    group: str  # that is mounted
    place: str
    version: int


def processors(root: Path = Path("/")) -> float | None:
    """How many processors' time the limits leave, such as 1.5; None without any limit.

    `root`: where the system's files are.
    """
    limits = (_limit(folder, mount.version) for mount, folder in _groups(root))
    return min((limit for limit in limits if limit is not None), default=None)


def _groups(root: Path) -> Iterator[tuple[_Mount, Path]]:
    """The process's group in each hierarchy, and all above it, as far as they can be seen."""
    own = _own_groups(root)
    for mount in _mounts(root):
        group = own.get(mount.version)
        if group is None:
            continue
        top = root / mount.place.lstrip("/")
        below = _below(group, mount.group)
        for folder in (below, *below.parents):
            yield mount, top / folder


def _below(group: str, mounted: str) -> PurePosixPath:
    """Where `group` is from the one that is mounted; that very one where it cannot be seen."""
    with suppress(ValueError):
        below = PurePosixPath(group).relative_to(mounted)
        if ".." not in below.parts:
            return below
    return PurePosixPath()


def _own_groups(root: Path) -> dict[int, str]:
    """By version: `0::/path` is of version 2, `4:cpu,cpuacct:/path` of version 1."""
    groups: dict[int, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        with suppress(ValueError):
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                groups[2] = path
            elif "cpu" in controllers.split(","):
                groups[1] = path
    return groups


def _mounts(root: Path) -> Iterator[_Mount]:
    """Of `ID PARENT DEVICE GROUP PLACE OPTIONS ... - TYPE SOURCE OPTIONS` what has limits."""
    for line in _lines(root / "proc/self/mountinfo"):
        with suppress(ValueError):
            before, after = line.split(" - ", 1)
            _, _, _, group, place, *_ = map(_unescaped, before.split(" "))
            kind, _, options = after.split(" ", 2)
            if kind == "cgroup2":
                yield _Mount(group, place, 2)
            elif kind == "cgroup" and "cpu" in options.split(","):
                yield _Mount(group, place, 1)


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _limit(folder: Path, version: int) -> float | None:
    """What this group alone allows."""
    if version == 2:
        texts = " ".join(_lines(folder / "cpu.max")).split()
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        texts = [text for name in names for text in _lines(folder / name)]
    with suppress(ValueError):  # no limit is `max`, or -1
        quota, period = map(int, texts)
        return quota / period if quota > 0 and period > 0 else None
    return None


def _lines(file: Path) -> list[str]:
    """None for a file that is not there or cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
