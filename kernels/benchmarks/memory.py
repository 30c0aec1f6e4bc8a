"""Peak memory of one pass beside what was held before it.

The resident set of this process on the CPU, the allocator's statistics on CUDA.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

MIB = float(1 << 20)
RESET = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def peak_mib(device: torch.device, run: Callable[[], Any], exact: bool = True) -> float | None:
    """MiB that `run` held at most, beyond what was held when it began.

    None where the system does not tell (the CPU outside Linux). Call it after `run`, or a smaller one like it, ran
    once: libraries that are loaded then, compiled code and workspaces that stay do not count.
    exact: on the CPU `run` goes to a thread, whose heap is new, and the C library maps and unmaps every block above 64
    KiB, which is slower; otherwise it would reuse and keep freed blocks, which then count or hide.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - held) / MIB
    if not exact:
        return _growth(run)
    with _mapped_blocks(), ThreadPoolExecutor(1) as thread:
        threads = torch.get_num_threads()
        thread.submit(torch.set_num_threads, threads).result()  # a setting of each thread
        return thread.submit(_growth, run).result()


def _growth(run: Callable[[], Any]) -> float | None:
    known = _start_anew()
    before = high_water_mark() if known else 0.0
    run()
    return high_water_mark() - before if known else None


def keep_freed_blocks() -> None:
    """Let the C library keep what is freed, as in a process that has run for a while (glibc; nothing elsewhere).

    By default it returns memory to the system now and then, depending on what happened before; the pages then cost as
    much as the arithmetic.
    """
    _thresholds(mapped_from=32 << 20, trimmed_from=1 << 30)


@contextmanager
def _mapped_blocks() -> Iterator[None]:
    """Every block above 64 KiB comes from the system and goes back at once."""
    _thresholds(mapped_from=64 << 10, trimmed_from=64 << 10)
    try:
        yield
    finally:
        keep_freed_blocks()


def _thresholds(mapped_from: int, trimmed_from: int) -> None:
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(-3, mapped_from)  # M_MMAP_THRESHOLD, at most 32 MiB
        option(-1, trimmed_from)  # M_TRIM_THRESHOLD


def high_water_mark() -> float:
    """Largest resident set of this process since its start or the last `_start_anew`, in MiB (Linux)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return float(line.split()[1]) / 1024.0


def _start_anew() -> bool:
    """Give freed memory back to the system and set the high-water mark to what is held now.

    False where the system does not offer it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True
