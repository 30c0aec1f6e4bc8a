"""Cells of probes on a Ray: those of `cardialign.pretrain.evaluation.probing.cells` as Ray tasks.

Features and labels lie in files that every node sees; a task fits on one core, as in a local run, so its figures are
the same to the bit. A worker that is killed has its cell tried again elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cardialign.cluster.environment.handed_on import adopt
from cardialign.cluster.evaluations.tasks import RayTasks, sign_of_life
from cardialign.pretrain.evaluation.probing.cells import CellJob, Outcome, run_cell


def work_on_cell(job: CellJob, environment: dict[str, str]) -> Outcome:
    """What a Ray task does."""
    adopt(environment)
    with sign_of_life(_sign(job)):
        return run_cell(job)


def _sign(job: CellJob) -> Path:
    return job.task.with_name(f".{job.task.name}@{100 * job.options.shares[0]:g}.alive")


def _name(job: CellJob) -> str:
    return f"{job.task.name} at {100 * job.options.shares[0]:g} %"


@dataclass(frozen=True)
class RayCells:
    """Runs cells as Ray tasks; address and workers as of `RayTasks`."""

    address: str | None
    workers: int = 0
    work: Callable[[CellJob, dict[str, str]], Outcome] = work_on_cell

    def run(self, jobs: Sequence[CellJob]) -> Iterator[tuple[int, Outcome]]:
        """Raises as `RayTasks.run`; DataError when a node does not see the files."""
        tasks = RayTasks(self.work, _name, _sign, "the evaluation", self.address, self.workers)
        yield from tasks.run(jobs)
