"""Pieces of work as Ray tasks: so many at a time, a lost worker's piece tried again, a standstill told and ended.

What a piece reads and writes lies in files that every node sees.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from cardialign.cluster.cli.options import WAIT_MINUTES
from cardialign.cluster.environment.handed_on import handed_on
from cardialign.cluster.environment.session import ray_session
from cardialign.cluster.environment.standstill import Standstill, ray_resources, resources_state
from cardialign.data_shards.cpus import usable_cpus
from cardialign.data_shards.errors import DataError, UserError

log = logging.getLogger(__name__)
NOTE_SECONDS = 2.0
TRIES = 3
Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RayTasks(Generic[Job, Result]):
    """Runs `work(job, environment)` as Ray tasks of one core each.

    name: of a job, for messages; sign: the file that is touched while it runs (`sign_of_life`). what: all of them, for
    messages. address: None starts a local Ray of `workers` processes (0 = one per usable core); otherwise the cluster
    to join ("auto", "host:port"), on which at most so many jobs run at a time (0 = as many as it has cores for).
    gpu_each: a GPU for each job where there are any, and no more jobs at a time than GPUs.
    """

    work: Callable[[Job, dict[str, str]], Result]
    name: Callable[[Job], str]
    sign: Callable[[Job], Path]
    what: str
    address: str | None
    workers: int = 0
    gpu_each: bool = False

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[int, Result]]:
        """(place, result) of each as it ends, in any order. `jobs` is asked for the next one when there is room for it.

        Raises a job's own UserError; DataError when one is lost again and again; UserError when no cluster answers, or
        nothing has moved for WAIT_MINUTES.
        """
        queue = iter(enumerate(jobs))
        first = next(queue, None)
        if first is None:
            return
        import ray

        with ray_session(self.workers or usable_cpus(), self.address):
            has = ray.cluster_resources()
            gpus = int(has.get("GPU", 0)) if self.gpu_each else 0
            room = gpus or max(1, int(has.get("CPU", 1)))
            at_a_time = min(self.workers, room) if self.workers else room
            wanted = {"CPU": 1.0} | ({"GPU": 1.0} if gpus else {})
            log.info("ray_tasks of=%s address=%s at_a_time=%d", self.what, self.address or "local", at_a_time)
            task = ray.remote(num_cpus=1, num_gpus=min(1, gpus), max_retries=TRIES)(self.work)
            environment = ray.put(handed_on(os.environ))
            pending: dict[Any, tuple[int, Job]] = {task.remote(first[1], environment): first}
            finished = 0
            standstill = Standstill(self.what, 60 * WAIT_MINUTES)
            while pending:
                while len(pending) < at_a_time and (item := next(queue, None)) is not None:
                    pending[task.remote(item[1], environment)] = item
                done, _ = ray.wait(list(pending), num_returns=1, timeout=NOTE_SECONDS)
                for reference in done:
                    place, job = pending.pop(reference)
                    yield place, self._result(ray, reference, job)
                    if (item := next(queue, None)) is not None:
                        pending[task.remote(item[1], environment)] = item
                finished += len(done)
                state = partial(resources_state, wanted, ray_resources)
                standstill.look((finished, [_touched(self.sign(job)) for _, job in pending.values()]), state)

    def _result(self, ray: Any, reference: Any, job: Job) -> Result:
        try:
            result: Result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise DataError(
                f"{self.name(job)}: the task failed: {error.cause}", "see the log of the Ray worker, then run again"
            ) from error
        except ray.exceptions.RayError as error:
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(
                f"{self.name(job)}: its worker was lost more than {TRIES} times: {first_line}",
                "check the nodes' memory, then run the same command again",
            ) from error
        return result


@contextlib.contextmanager
def sign_of_life(path: Path) -> Iterator[None]:
    """A file that is touched while the block runs: a long piece is no standstill, and a dead worker touches nothing."""
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


def _touched(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
