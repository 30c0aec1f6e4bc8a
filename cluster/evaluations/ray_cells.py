"""Cells of probes on a Ray: those of `cardialign.pretrain.evaluation.probing.cells` as Ray tasks.

Features and labels lie in files that every node sees; a task fits on one core, as in a local run, so its figures are
the same to the bit. A worker that is killed has its cell tried again elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cardialign.cluster.cli.options import WAIT_MINUTES
from cardialign.cluster.environment.handed_on import adopt, handed_on
from cardialign.cluster.environment.session import ray_session
from cardialign.cluster.environment.standstill import Standstill, ray_resources, resources_state
from cardialign.data_shards.cpus import usable_cpus
from cardialign.data_shards.errors import DataError, UserError
from cardialign.pretrain.evaluation.probing.cells import CellJob, Outcome, run_cell

log = logging.getLogger(__name__)
NOTE_SECONDS = 2.0
TRIES = 3
CORES_OF_A_CELL = 1.0


def work_on_cell(job: CellJob, environment: dict[str, str]) -> Outcome:
    """What a Ray task does."""
    adopt(environment)
    with _sign_of_life(_sign(job)):
        return run_cell(job)


def _sign(job: CellJob) -> Path:
    return job.task.with_name(f".{job.task.name}@{100 * job.options.shares[0]:g}.alive")


@contextlib.contextmanager
def _sign_of_life(path: Path) -> Iterator[None]:
    """A file that is touched while the block runs: a long cell is no standstill, and a dead worker touches nothing."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(NOTE_SECONDS):
            with contextlib.suppress(OSError):
                path.touch()

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class RayCells:
    """Runs cells as Ray tasks.

    address: None starts a local Ray of `workers` processes (0 = one per usable core); otherwise the cluster to join
    ("auto", "host:port"), on which at most so many cells run at a time (0 = as many as it has cores for).
    """

    address: str | None
    workers: int = 0
    work: Callable[[CellJob, dict[str, str]], Outcome] = work_on_cell

    def run(self, jobs: Sequence[CellJob]) -> Iterator[tuple[int, Outcome]]:
        """Raises DataError when a node does not see the files or a cell is lost again and again; UserError when no
        cluster answers, or nothing has moved for WAIT_MINUTES."""
        if not jobs:
            return
        import ray

        with ray_session(self.workers or usable_cpus(), self.address):
            cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
            at_a_time = min(self.workers, cores) if self.workers else cores
            log.info("ray_cells address=%s at_a_time=%d cells=%d", self.address or "local", at_a_time, len(jobs))
            cell = ray.remote(num_cpus=CORES_OF_A_CELL, max_retries=TRIES)(self.work)
            environment = ray.put(handed_on(os.environ))
            queue = iter(enumerate(jobs))
            pending: dict[Any, int] = {}
            finished = 0
            standstill = Standstill("the evaluation", 60 * WAIT_MINUTES)
            while True:
                while len(pending) < at_a_time and (item := next(queue, None)) is not None:
                    place, job = item
                    pending[cell.remote(job, environment)] = place
                if not pending:
                    return
                done, _ = ray.wait(list(pending), num_returns=1, timeout=NOTE_SECONDS)
                for reference in done:
                    place = pending.pop(reference)
                    yield place, _outcome(ray, reference, jobs[place])
                finished += len(done)
                state = partial(resources_state, {"CPU": CORES_OF_A_CELL}, ray_resources)
                standstill.look((finished, [_touched(jobs[place]) for place in pending.values()]), state)


def _touched(job: CellJob) -> int | None:
    try:
        return _sign(job).stat().st_mtime_ns
    except OSError:
        return None


def _outcome(ray: Any, reference: Any, job: CellJob) -> Outcome:
    name = f"{job.task.name} at {100 * job.options.shares[0]:g} %"
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise DataError(
            f"{name}: the cell failed: {error.cause}", "see the log of the Ray worker, then run again"
        ) from error
    except ray.exceptions.RayError as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{name}: its worker was lost more than {TRIES} times: {first_line}",
            "check the nodes' memory, then run the same command again",
        ) from error
    return outcome
