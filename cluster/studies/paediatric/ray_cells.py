"""The paediatric study on a Ray: each encoder, and each cell, as a task of one core, and one GPU where there are any.
Shards and the folder of the study lie where every node sees them."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.cluster.environment.handed_on import adopt
from cardialign.cluster.evaluations.tasks import RayTasks, sign_of_life
from cardialign.cluster.studies.budget import Budget
from cardialign.cluster.studies.outcome import NotLearnt, Outcome
from cardialign.cluster.studies.paediatric.cells import CELLS, Study, cell_of
from cardialign.cluster.studies.paediatric.design import Arm, Sizes
from cardialign.cluster.studies.scoring import scoring_device
from cardialign.cluster.studies.work import OnRay
from cardialign.pretrain.run.lock import HeldError


@dataclass(frozen=True)
class PaediatricJob:
    """A cell, or what its arm starts from, of the study of these records in this folder."""

    arm: Arm
    seed: int
    pretrains: bool
    adults: Path
    children: Path
    label_set: str
    sizes: Sizes
    out: Path

    @property
    def name(self) -> str:
        cell = cell_of(self.arm, self.seed)
        return f"encoder of {self.arm.recipe}, seed {self.seed}" if self.pretrains else cell.name

    @property
    def sign(self) -> Path:
        """Touched while it runs."""
        return self.out / CELLS / cell_of(self.arm, self.seed).name / ".alive"


def work_on_job(job: PaediatricJob, environment: dict[str, str]) -> dict[str, Any]:
    """What a Ray task does; what a pretraining cost. What another process holds is left to it."""
    from cardialign.data_shards.shard_set.shard_set import ShardSet

    adopt(environment)
    adults, children = ShardSet.open(job.adults), ShardSet.open(job.children)
    study = Study(adults, children, job.label_set, job.seed + 1, job.sizes, job.out)
    job.sign.parent.mkdir(parents=True, exist_ok=True)
    with sign_of_life(job.sign), contextlib.suppress(HeldError, NotLearnt):
        if job.pretrains:
            began = time.monotonic()
            cores = study.pretrain(job.arm, job.seed)
            return {"cpu_seconds": cores, "seconds": time.monotonic() - began, "device": scoring_device()}
        study.tune(job.arm, job.seed)
    return {"cpu_seconds": 0.0}


def make_on_ray(study: Study, budget: Budget, ray: OnRay) -> Iterator[Outcome]:
    """As `Study.make`: first all encoders, each as a task, then the cells. Raises as `RayTasks.run`."""
    from cardialign.cluster.runs.lifecycle import prepare

    def lacking(ready: bool) -> Iterator[tuple[Arm, int]]:
        """Cells that are to be made, whose encoder is there, or is not."""
        for arm, seed in study.cells():
            if budget.spent:
                return
            if study.without_start(arm, seed):
                continue
            if study.look(arm, seed) is None and study.is_pretrained(arm, seed) == ready:
                yield arm, seed

    starts = {study.encoder(arm.recipe, seed): (arm, seed) for arm, seed in lacking(False) if arm.recipe}
    for arm, seed in starts.values():
        prepare(study.config(str(arm.recipe), seed)[0])  # one text bank for all
    affordable = itertools.takewhile(lambda _: not budget.spent, starts.values())
    for _, facts in _on_ray(study, affordable, ray, pretrains=True):
        budget.spend(facts)
    for (arm, seed), _ in _on_ray(study, lacking(True), ray):
        found = study.look(arm, seed)
        if found is not None:
            budget.spend(found.facts)
            yield found


def _on_ray(
    study: Study, cells: Iterable[tuple[Arm, int]], ray: OnRay, pretrains: bool = False
) -> Iterator[tuple[tuple[Arm, int], dict[str, Any]]]:
    """Each as it ends, with what `work_on_job` said of it. Raises as `RayTasks.run`."""
    given: list[tuple[Arm, int]] = []

    def jobs() -> Iterator[PaediatricJob]:
        for arm, seed in cells:
            given.append((arm, seed))
            places = (study.adults.path.absolute(), study.children.path.absolute())
            yield PaediatricJob(arm, seed, pretrains, *places, study.label_set, study.sizes, study.out.absolute())

    tasks = RayTasks(
        work_on_job, lambda job: job.name, lambda job: job.sign, "the study", ray.address, ray.workers, gpu_each=True
    )
    for place, facts in tasks.run(jobs()):
        yield given[place], facts
