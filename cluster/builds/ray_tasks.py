"""A build on a Ray cluster: the tasks of `cardialign.data_shards.build.build` as Ray tasks.

They write to a filesystem which every node sees. The driver keeps the plan, the lock and the commit; a node only ever
runs `build_one_shard`, so the set has the bytes of a local build. A node that is lost has its tasks run again
elsewhere: a shard appears by rename, whole or not at all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import WAIT_MINUTES
from cardialign.cluster.environment.handed_on import adopt, handed_on
from cardialign.cluster.environment.session import ray_session
from cardialign.cluster.environment.standstill import Standstill, ray_resources, resources_state
from cardialign.data_shards.build.claim import PLAN
from cardialign.data_shards.build.executors import TASKS_PER_WORKER, Count
from cardialign.data_shards.build.listing import LISTING
from cardialign.data_shards.build.shard_task import ShardOutcome, ShardTask, build_one_shard, read_sidecar
from cardialign.data_shards.cpus import usable_cpus
from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.shard_set.layout import WORK_FOLDER
from cardialign.data_shards.shown import public
from cardialign.data_shards.sources.base import Source

log = logging.getLogger(__name__)
NOTE_SECONDS = 2.0
VISIBLE_SECONDS = 60.0
"""How long a network filesystem may take to show this machine what a node has committed."""
_SHARED = "let --root and --out lie on a filesystem that every node mounts at the same path"


@dataclass(frozen=True)
class RayTasks:
    """Runs the shards of a build as Ray tasks.

    address: None starts a local Ray of `workers` processes (0 = one per usable core); otherwise the cluster to join
    ("auto", "host:port").
    """

    address: str | None = field(repr=False)
    workers: int = 0

    def run(self, source: Source, tasks: Sequence[ShardTask], count: Count) -> Iterator[ShardOutcome]:
        """The outcomes of `tasks`, in the order in which they finish.

        Raises the DataError of a task; DataError when a node does not share the filesystem; UserError when no cluster
        answers, or when nothing has moved for WAIT_MINUTES.
        """
        if not tasks:
            return
        import ray

        with ray_session(self.workers or usable_cpus(), self.address):
            workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
            if self.workers:
                workers = min(workers, self.workers)
            log.info("ray_build address=%s workers=%d tasks=%d", public(self.address or "local"), workers, len(tasks))
            build = ray.remote(num_cpus=1, max_retries=3)(_work)
            shared, environment = ray.put(source), ray.put(handed_on(os.environ))
            queue = iter(tasks)
            pending: dict[Any, ShardTask] = {}
            counted, finished_tasks = Counted(count), 0
            standstill = Standstill("the build", 60 * WAIT_MINUTES)
            while True:
                # joined clusters may grow or be shared: their scheduler decides what runs, we only bound what waits
                while len(pending) < TASKS_PER_WORKER * workers and (task := next(queue, None)) is not None:
                    pending[build.remote(shared, task, environment)] = task
                if not pending:
                    return
                finished, _ = ray.wait(list(pending), num_returns=1, timeout=NOTE_SECONDS)
                for reference in finished:
                    task = pending.pop(reference)
                    outcome = _outcome(ray, reference, task)
                    counted.reach(task.number, outcome.entries, outcome.rejected)
                    yield outcome
                for task in pending.values():
                    counted.reach(task.number, *TaskNote(task.out, task.number).read())
                finished_tasks += len(finished)
                standstill.look((finished_tasks, counted.total), partial(resources_state, {"CPU": 1.0}, ray_resources))


def _work(source: Source, task: ShardTask, environment: dict[str, str]) -> ShardOutcome:
    adopt(environment)
    if not all((task.out / WORK_FOLDER / name).is_file() for name in (PLAN, LISTING)):
        raise DataError(f"node {platform.node()} does not see the build in {task.out}", _SHARED)
    note = TaskNote(task.out, task.number)
    try:
        return build_one_shard(source, task, note.add)
    finally:
        note.path.unlink(missing_ok=True)


class TaskNote:
    """How far a task has got, in a file of the work folder.

    It is written now and then where the task runs, and read by the driver.
    """

    def __init__(self, out: Path, number: int) -> None:
        self.path = out / WORK_FOLDER / f"note-{number:06d}"
        self._entries = self._rejected = 0
        self._written = time.monotonic()

    def add(self, rejected: bool) -> None:
        """One more entry is done."""
        self._entries += 1
        self._rejected += rejected
        if time.monotonic() - self._written >= NOTE_SECONDS:
            self._written = time.monotonic()
            with contextlib.suppress(OSError):  # progress is worth no failure; a full disk shows itself soon
                self.path.write_text(f"{self._entries} {self._rejected}")

    def read(self) -> tuple[int, int]:
        """(entries, rejected); zeros before the first note and while it is being replaced."""
        try:
            entries, rejected = map(int, self.path.read_text().split())
        except (OSError, ValueError):
            return 0, 0
        return entries, rejected


class Counted:
    """What has been told to `count` of every task.

    Never more than it did, also when a task is lost and runs again from its beginning.
    """

    def __init__(self, count: Count) -> None:
        self._count = count
        self._told: dict[int, tuple[int, int]] = {}
        self.total = 0
        """Entries of all tasks so far."""

    def reach(self, number: int, entries: int, rejected: int) -> None:
        """Task `number` has now done so many entries in all."""
        told = self._told.get(number, (0, 0))
        more = max(0, entries - told[0]), max(0, rejected - told[1])
        if any(more):
            self._told[number] = told[0] + more[0], told[1] + more[1]
            self.total += more[0]
            self._count(*more)


def _outcome(ray: Any, reference: Any, task: ShardTask) -> ShardOutcome:
    try:
        outcome: ShardOutcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError):
            raise cause from None
        raise DataError(
            f"shard {task.number}: the task failed: {cause}", "see the log of the Ray worker, then build again"
        ) from error
    except ray.exceptions.RayError as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"shard {task.number}: its Ray task was lost more than 3 times: {first_line}",
            "check the nodes' memory, then run the same build again: finished shards are kept",
        ) from error
    deadline = time.monotonic() + VISIBLE_SECONDS
    while read_sidecar(task.out, task.number) is None:
        if time.monotonic() > deadline:
            raise DataError(
                f"a node says that shard {task.number} is committed, but this machine does not see it in {task.out}",
                _SHARED,
            )
        time.sleep(0.5)
    return outcome
