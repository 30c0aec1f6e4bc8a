"""Where the tasks of a build run: in this process, in processes of this machine, or (from the floor above) on a Ray
cluster.

Each task writes its own shard and sidecar, so it does not matter where or in which order tasks run: the set has the
same bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from typing import Any, Protocol

import numpy as np

from cardialign.data_shards.build.shard_task import ShardOutcome, ShardTask, build_one_shard
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.sources.base import Source

Count = Callable[[int, int], None]
"""count(entries, rejected): so many more entries are done, of which so many were turned away."""
POLL_SECONDS = 0.25
TASKS_PER_WORKER = 2


class BuildExecutor(Protocol):
    """Runs `build_one_shard` for every task and yields each outcome when its shard is committed.

    `count` is called along the way, in sum with every entry of every task that succeeds. Holds a bounded number of
    tasks in flight. A task's error ends the iteration; shards that are committed stay.
    """

    def run(self, source: Source, tasks: Sequence[ShardTask], count: Count) -> Iterator[ShardOutcome]: ...


class InThisProcess:
    """One task after the other, here."""

    def run(self, source: Source, tasks: Sequence[ShardTask], count: Count) -> Iterator[ShardOutcome]:
        for task in tasks:
            yield build_one_shard(source, task, lambda rejected: count(1, int(rejected)))


@dataclass(frozen=True)
class Processes:
    """Spawned processes of this machine (safe beside threads, CUDA and Ray)."""

    workers: int

    def run(self, source: Source, tasks: Sequence[ShardTask], count: Count) -> Iterator[ShardOutcome]:
        """Raises DataError when a process was killed."""
        context = get_context("spawn")
        # One pair of numbers per task with one writer each: no lock that a killed process could leave locked.
        board = context.RawArray("q", 2 * len(tasks))
        done = np.frombuffer(board, dtype=np.int64).reshape(-1, 2)
        counted = np.zeros(2, dtype=np.int64)
        pool = ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=_start_worker, initargs=(source, board)
        )
        try:
            for outcomes in _bounded(pool, tasks, TASKS_PER_WORKER * self.workers):
                now = done.sum(axis=0)
                if (now != counted).any():
                    count(int(now[0] - counted[0]), int(now[1] - counted[1]))
                    counted = now
                yield from outcomes
        except BrokenProcessPool as error:
            raise DataError(
                "a build process was killed (out of memory, or by someone)",
                "run the same build again with fewer workers: finished shards are kept",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _bounded(pool: ProcessPoolExecutor, tasks: Sequence[ShardTask], in_flight: int) -> Iterator[list[ShardOutcome]]:
    """Outcomes as they come, and an empty list now and then while none comes."""
    queue = iter(enumerate(tasks))
    pending: set[Future[ShardOutcome]] = set()
    while True:
        while len(pending) < in_flight and (item := next(queue, None)) is not None:
            pending.add(pool.submit(_work, *item))
        if not pending:
            return
        finished, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        yield [future.result() for future in finished]


_worker_source: Source | None = None
_worker_board: Any = None


def _start_worker(source: Source, board: Any) -> None:
    global _worker_source, _worker_board
    _worker_source, _worker_board = source, board
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A build that is killed outright cannot tell its workers; they must not go on writing beside the build that
    resumes it."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(position: int, task: ShardTask) -> ShardOutcome:
    assert _worker_source is not None

    def on_entry(rejected: bool) -> None:
        _worker_board[2 * position] += 1
        _worker_board[2 * position + 1] += rejected

    return build_one_shard(_worker_source, task, on_entry)
