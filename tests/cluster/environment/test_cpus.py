"""How many threads a worker takes follows the CPUs that its own node gives it: affinity, cgroup v1, cgroup v2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cardialign.cluster.environment import threads
from cardialign.cluster.environment.threads import threads_asked, threads_of_each
from cardialign.data_shards.cpus import usable_cpus


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


def group(tmp_path: Path, line: str, files: dict[str, str]) -> tuple[Path, Path]:
    """(root of the cgroup file systems, /proc/self/cgroup)"""
    (tmp_path / "own").write_text(line)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "fs", tmp_path / "own"


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize(
    ("own", "files", "usable"),
    [
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/slurm/job_7\n", {"slurm/job_7/cpu.max": "max 100000\n", "slurm/cpu.max": "300000 100000\n"}, 3),
        ("0::/../pod\n", {"cpu.max": "200000 100000\n"}, 2),  # a cgroup namespace
        ("0::/pod/not-mounted-here\n", {"cpu.max": "200000 100000\n"}, 2),
        (
            "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n0::/x\n",
            {"cpu,cpuacct/docker/a/cpu.cfs_quota_us": "600000\n", "cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000\n"},
            6,
        ),
        ("3:cpu:/docker/a\n", {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ("nonsense\n", {"cpu.max": "nonsense\n"}, 16),
    ],
)
def test_a_quota_of_the_container_counts(tmp_path: Path, own: str, files: dict[str, str], usable: int) -> None:
    assert usable_cpus(*group(tmp_path, own, files)) == usable


def test_affinity_counts_and_the_number_of_processors_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cpus(tmp_path, tmp_path / "none") == 3


def test_the_cpus_of_a_node_are_shared_by_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: 6)
    assert [threads_of_each(workers) for workers in (1, 2, 4, 8)] == [6, 3, 1, 1]
    assert threads_of_each(2, asked=1) == 1 and threads_of_each(2, asked=64) == 3
    for text, asked in (("4", 4), ("", None), ("0", None), ("many", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert threads_asked() == asked
