"""A measurement in a process of its own, so that nothing measured before it is counted in its memory or its caches; and
that memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cardialign.data_shards.errors import DataError


def measured_by(module: str, *words: str, **environment: str) -> dict[str, Any]:
    """Run `python -m module words` with more environment and read the JSON object that it prints.

    Raises DataError with its last words.
    """
    root = Path(__file__).absolute().parents[3]
    known: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(root), **environment}
    answer = subprocess.run(  # noqa: S603 - a benchmark of ours
        [sys.executable, "-m", module, *words], capture_output=True, text=True, cwd=root, env=known
    )
    if answer.returncode:
        last = " ".join(line.strip() for line in answer.stderr.strip().splitlines()[-2:])
        raise DataError(
            f"the process that measures with {module} failed: {last}",
            f"run `{sys.executable} -m {module} {' '.join(words)}`",
        )
    return dict(json.loads(answer.stdout))


class PeakMemory:
    """Largest growth of this process's own (anonymous) memory inside the `with`, in MiB, sampled every 10 ms. Linux.

    File-backed pages of memory-mapped columns are not counted: the kernel drops them when it needs the room.
    """

    def __enter__(self) -> PeakMemory:
        self._before, self.mib, self._ended = own_memory(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._ended.wait(0.01):
            self.mib = max(self.mib, (own_memory() - self._before) / 2**20)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.mib = max(self.mib, (own_memory() - self._before) / 2**20)


def own_memory() -> int:
    """Bytes of anonymous memory (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


def peak_memory() -> int:
    """Most bytes this program ever held.

    Linux: from the memory map, because `ru_maxrss` still counts the program that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return next(
            int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM:")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
