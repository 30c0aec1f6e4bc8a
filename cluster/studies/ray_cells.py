"""Cells of a study on a Ray: each as a task of one core, and one GPU where there are any. Shards and the folder of the
study lie where every node sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.cluster.environment.handed_on import adopt
from cardialign.cluster.evaluations.tasks import RayTasks, sign_of_life
from cardialign.cluster.studies.cells import run_cell
from cardialign.cluster.studies.design import Cell
from cardialign.cluster.studies.outcome import NotLearnt, Setting
from cardialign.pretrain.run.lock import HeldError


@dataclass(frozen=True)
class StudyJob:
    """A cell, what it trains as plain values (None: labels alone train it), and the folder of its scores."""

    cell: Cell
    config: dict[str, Any] | None
    setting: Setting
    folder: Path


def work_on_cell(job: StudyJob, environment: dict[str, str]) -> None:
    """What a Ray task does; the scores lie in the folder of the cell afterwards, unless another process holds it or
    it collapses."""
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.config import parse_config

    adopt(environment)
    job.folder.mkdir(parents=True, exist_ok=True)
    with sign_of_life(_sign(job)), contextlib.suppress(HeldError, NotLearnt):
        config = None if job.config is None else parse_config(job.config)
        run_cell(job.cell, config, job.setting, job.folder, ShardSet.open(job.setting.shards))


def _sign(job: StudyJob) -> Path:
    return job.folder / ".alive"


def on_ray(jobs: Iterable[StudyJob], address: str | None, workers: int) -> Iterator[int]:
    """The place of each cell as it ends; `jobs` is asked for the next when there is room. Raises as `RayTasks.run`."""
    tasks = RayTasks(work_on_cell, lambda job: job.cell.name, _sign, "the study", address, workers, gpu_each=True)
    for place, _ in tasks.run(jobs):
        yield place
