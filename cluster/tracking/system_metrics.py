"""What the machine does while a run trains: CPU, memory in use, memory of the driver and its workers on this host."""

from __future__ import annotations

import os
from pathlib import Path

from cardialign.data_shards.files import read_json
from cardialign.pretrain.run.files import WORKERS

MIB = 2**20


def worker_pids(run_dir: Path, host: str) -> list[int]:
    """Processes of the current workers on `host`, from the notes they leave in `run_dir/workers`."""
    notes = [read_json(path) for path in sorted((run_dir / WORKERS).glob("rank-*.json"))]
    return [int(note["pid"]) for note in notes if note and note.get("host") == host]


def sample(run_dir: Path) -> dict[str, float]:
    """One reading: `system/...` -> percent or MiB.

    The first CPU reading of a process is 0 (psutil measures between calls).
    """
    import platform

    import psutil

    memory = psutil.virtual_memory()
    resident = []
    for pid in worker_pids(run_dir, platform.node()):
        try:
            resident.append(psutil.Process(pid).memory_info().rss)
        except psutil.Error:  # it has just gone
            continue
    return {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_used_mib": (memory.total - memory.available) / MIB,
        "system/driver_rss_mib": psutil.Process(os.getpid()).memory_info().rss / MIB,
        "system/workers_rss_mib": sum(resident) / MIB,
    }
