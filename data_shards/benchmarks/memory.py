"""The memory that a process takes for itself: what the benchmarks state as a peak."""

from __future__ import annotations

import threading


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
