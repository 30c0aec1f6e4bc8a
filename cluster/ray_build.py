"""A build on a Ray cluster: the tasks of `data_shards.build` as Ray tasks that write to a filesystem which every node sees.

The driver keeps the plan, the lock and the commit; a node only ever runs `build_one_shard`, so the set has the bytes of a local build. A node that is
lost has its tasks run again elsewhere: a shard appears by rename, whole or not at all.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.ray_driver import ray_session
from data_shards.build_claim import PLAN
from data_shards.build_executors import TASKS_PER_WORKER, Count
from data_shards.build_shard import WORK_FOLDER, ShardOutcome, ShardTask, build_one_shard, read_sidecar
from data_shards.errors import DataError, UserError
from data_shards.listing import LISTING
from data_shards.sources.base import Source

log = logging.getLogger(__name__)
VISIBLE_SECONDS = 60.0
"""How long a network filesystem may take to show this machine what a node has committed."""
_SHARED = "let --root and --out lie on a filesystem that every node mounts at the same path"


@dataclass(frozen=True)
class RayTasks:
    """address: None starts a local Ray of `workers` processes (0 = one per usable core); otherwise the cluster to join ("auto", "host:port")."""

    address: str | None
    workers: int = 0

    def run(self, source: Source, tasks: Sequence[ShardTask], count: Count) -> Iterator[ShardOutcome]:
        """Raises the DataError of a task; DataError when a node does not share the filesystem; UserError when no cluster answers."""
        if not tasks:
            return
        import ray

        with ray_session(self.workers or len(os.sched_getaffinity(0)), self.address):
            workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
            if self.workers:
                workers = min(workers, self.workers)
            log.info("ray_build address=%s workers=%d tasks=%d", self.address or "local", workers, len(tasks))
            build = ray.remote(num_cpus=1, max_retries=3)(_work)
            shared = ray.put(source)
            queue = iter(tasks)
            pending: dict[Any, ShardTask] = {}
            while True:
                # joined clusters may grow or be shared: their scheduler decides what runs, we only bound what waits
                while len(pending) < TASKS_PER_WORKER * workers and (task := next(queue, None)) is not None:
                    pending[build.remote(shared, task)] = task
                if not pending:
                    return
                finished, _ = ray.wait(list(pending), num_returns=1)
                for reference in finished:
                    task = pending.pop(reference)
                    outcome = _outcome(ray, reference, task)
                    count(outcome.entries, outcome.rejected)
                    yield outcome


def _work(source: Source, task: ShardTask) -> ShardOutcome:
    if not all((task.out / WORK_FOLDER / name).is_file() for name in (PLAN, LISTING)):
        raise DataError(f"node {platform.node()} does not see the build in {task.out}", _SHARED)
    return build_one_shard(source, task)


def _outcome(ray: Any, reference: Any, task: ShardTask) -> ShardOutcome:
    try:
        outcome: ShardOutcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError):
            raise cause from None
        raise DataError(f"shard {task.number}: the task failed: {cause}", "see the log of the Ray worker, then build again") from error
    except ray.exceptions.RayError as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"shard {task.number}: its Ray task was lost more than 3 times: {first_line}",
            "check the nodes' memory, then run the same build again: finished shards are kept",
        ) from error
    deadline = time.monotonic() + VISIBLE_SECONDS
    while read_sidecar(task.out, task.number) is None:
        if time.monotonic() > deadline:
            raise DataError(f"a node says that shard {task.number} is committed, but this machine does not see it in {task.out}", _SHARED)
        time.sleep(0.5)
    return outcome
