"""Run one function in several real processes that talk over gloo, with a deadline and the first traceback.

Ranks are not kept from one call to the next: each is a fork of a server that has imported torch and DeepSpeed once, and
starts within hundredths of a second (measured: 0.12 s and 0.05 CPU s for two). So every job finds fresh global state,
random numbers, threads and process groups, and one that hangs, crashes or is killed leaves nothing to the next.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

PRELOAD = ["torch", "torch.distributed"]
"""Modules that every rank finds imported; tests that start engines add theirs in a conftest, before a rank starts."""


class RankError(AssertionError):
    """A rank raised, died or ran past the deadline; the message holds the first traceback."""


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _start_method(environment: dict[str, str], fresh: bool) -> Iterator[Any]:
    """The context that starts ranks. `fresh`: new interpreters that have `environment` before they import anything."""
    if not fresh:
        yield _context()
        return
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield multiprocessing.get_context("spawn")
    finally:
        os.environ.clear()
        os.environ.update(before)


@functools.cache
def _context() -> Any:
    # The fork server imports these once; every rank is then a fork of a process that never ran a thread.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _rank_main(
    folder: str,
    rank: int,
    world: int,
    function: Callable[..., Any],
    args: tuple,
    environment: dict,
    init: bool,
    deadline: float,
) -> None:
    try:
        os.environ.update(environment)
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        if init:
            # The collectives' own timeout lies past the deadline: the parent, not a stuck collective, ends the run.
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/rendezvous",
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=deadline + 30),
            )
        outcome: tuple = (True, function(rank, world, *args))
    except BaseException:
        outcome = (False, time.time(), traceback.format_exc())
    partial = Path(folder) / f"{rank}.partial"
    try:
        partial.write_bytes(pickle.dumps(outcome))
    except Exception:
        outcome = (False, time.time(), traceback.format_exc())
        partial.write_bytes(pickle.dumps(outcome))
    partial.rename(Path(folder) / f"{rank}.result")
    if not outcome[0]:
        os._exit(1)  # at once: peers must not wait for a rank that tears its process group down


def run_ranks(
    world: int,
    function: Callable[..., Any],
    *args: Any,
    deadline: float = 60.0,
    init: bool = True,
    environment: dict[str, str] | None = None,
    fresh: bool = False,
) -> list[Any]:
    """Call function(rank, world, *args) in `world` processes; return the results in rank order.

    function: defined at module level; args and results picklable. init: start a gloo process group first (file
    rendezvous); otherwise RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT (set either way) are there for code
    that does it itself. environment: more variables for the ranks. fresh: start new interpreters (seconds instead of
    hundredths), for variables that must be there before an import.

    Raises RankError with the first traceback when a rank fails, or which ranks were still running at `deadline`
    seconds; no process is left behind.
    """
    shared = {
        **os.environ,
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    shared.update(environment or {})
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        processes = []
        with _start_method(environment or {}, fresh) as context:
            for rank in range(world):
                mine = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                process = context.Process(
                    target=_rank_main,
                    args=(folder, rank, world, function, args, mine, init, deadline),
                    daemon=False,
                    name=f"rank-{rank}",
                )
                process.start()
                processes.append(process)
        try:
            late = _wait_for(processes, time.monotonic() + deadline)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return _results(Path(folder), processes, late, deadline)


def _wait_for(processes: list[Any], end: float) -> list[int]:
    """Wait until all have ended, one has failed, or the time is up; return the ranks that were still running then."""
    while running := [rank for rank, process in enumerate(processes) if process.exitcode is None]:
        remaining = end - time.monotonic()
        if remaining <= 0:
            return running
        wait([processes[rank].sentinel for rank in running], timeout=remaining)
        if any(process.exitcode not in (None, 0) for process in processes):
            wait([process.sentinel for process in processes], timeout=0.2)
            return []
    return []


def _results(folder: Path, processes: list[Any], late: list[int], deadline: float) -> list[Any]:
    outcomes = {
        rank: pickle.loads((folder / f"{rank}.result").read_bytes())
        for rank in range(len(processes))
        if (folder / f"{rank}.result").exists()
    }
    failures = sorted((outcome[1], rank, outcome[2]) for rank, outcome in outcomes.items() if not outcome[0])
    if failures:
        _, rank, text = failures[0]
        raise RankError(f"rank {rank} of {len(processes)} failed first:\n{text}")
    if late:
        raise RankError(f"ranks {late} of {len(processes)} were still running after {deadline:g} s")
    missing = {rank: processes[rank].exitcode for rank in range(len(processes)) if rank not in outcomes}
    if missing:
        raise RankError(f"ranks ended without a result (rank: exit code): {missing}")
    return [outcomes[rank][1] for rank in range(len(processes))]
