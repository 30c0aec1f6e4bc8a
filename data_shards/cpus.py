"""How many CPUs this process may use: by its affinity, and by the quota of the container or the job it runs in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
V1_FOLDERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
"""Where the cpu controller of cgroup v1 is mounted, by the habits of distributions."""


def usable_cpus(root: Path = CGROUPS, own: Path = OWN) -> int:
    """CPUs that this process may use, at least 1: its affinity, or the smallest cgroup quota (v1, v2) above it."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(int(quota) for quota in _quotas(root, own))]))


def _quotas(root: Path, own: Path) -> Iterator[float]:
    """Quotas in CPUs, of the groups of this process and of those above them. A group without one yields nothing."""
    for controllers, path in _own_groups(own):
        if controllers == "":
            for folder in _upwards(root, path):
                quota = _numbers(folder / "cpu.max")
                if len(quota) == 2:
                    yield quota[0] / quota[1]
        elif "cpu" in controllers.split(","):
            for mount in V1_FOLDERS:
                for folder in _upwards(root / mount, path):
                    quota = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
                    if len(quota) == 2 and quota[0] > 0:
                        yield quota[0] / quota[1]


def _own_groups(own: Path) -> list[tuple[str, PurePosixPath]]:
    """(controllers, path) of each cgroup of this process; controllers are "" under v2."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    parts = [line.split(":", 2) for line in lines]
    return [(part[1], PurePosixPath(part[2])) for part in parts if len(part) == 3]


def _upwards(root: Path, path: PurePosixPath) -> Iterator[Path]:
    """The group's folder and those above it up to `root`: in a container only a part of them may be mounted."""
    relative = [part for part in path.parts if part not in ("/", "..")]
    for length in range(len(relative), -1, -1):
        yield root.joinpath(*relative[:length])


def _numbers(path: Path) -> list[float]:
    """The two numbers of `cpu.max`, or the one of a v1 file; nothing for "max" and for a file that is not there."""
    try:
        words = path.read_text().split()
    except OSError:
        return []
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return []
    return numbers if all(number != 0 for number in numbers) else []
