"""What of ours is still there when a run has ended: processes, shared memory, locks, half-written files."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from cardialign.cluster.drills.patience import Patience
from cardialign.cluster.runs.planned import FOLDER
from cardialign.pretrain.run.files import LOCK
from cardialign.pretrain.training.checkpoints.files import TEMPORARY, checkpoints_folder

SHARED, OURS = Path("/dev/shm"), ("torch_", "psm_", "plasma", "sem.")  # noqa: S108 - only looked at
GRACE_SECONDS = 20.0
"""A Ray that has lost its driver needs some seconds to end by itself."""


def leftovers(run_dir: Path, plan: Path, since: float, seconds: float = GRACE_SECONDS) -> list[str]:
    """What a run has left on this machine, in words; looked for again until it is gone or `seconds` have passed.

    plan: the folder of its faults, which every process of the run has in its environment. since: when it was started.
    """
    patience = Patience(seconds)
    while (found := _found(run_dir, plan, since)) and not patience.over():
        time.sleep(0.5)
    return found


def _found(run_dir: Path, plan: Path, since: float) -> list[str]:
    found = [f"process {pid} ({name})" for pid, name in processes_of(plan)]
    found += [str(path) for path in checkpoints_folder(run_dir).glob(f"{TEMPORARY}*")]
    found += [str(run_dir / LOCK)] if (run_dir / LOCK).exists() else []
    return [*found, *_shared_memory(since)]


def processes_of(plan: Path) -> list[tuple[int, str]]:
    """(pid, name) of the living processes that were started with this plan in their environment."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = process.pid != os.getpid() and process.environ().get(FOLDER) == str(plan)
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process.pid, process.name()))
    return found


def _shared_memory(since: float) -> list[str]:
    """Segments made since then that no process has any more: nobody will ever remove them."""
    young = []
    for path in SHARED.glob("*"):
        with contextlib.suppress(OSError):
            facts = path.stat()
            if facts.st_uid == os.getuid() and facts.st_ctime >= since and path.name.startswith(OURS):
                young.append(path)
    if not young:
        return []
    held = set[str]()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            held.update(line.rsplit(" ", 1)[-1] for line in maps.read_text().splitlines() if str(SHARED) in line)
    return [str(path) for path in young if str(path) not in held]
