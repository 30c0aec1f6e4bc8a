"""Seeds of a fine-tuning on a Ray: each as one task, with a GPU of its own where the cluster has GPUs.

Shards and encoder are opened by the task, so they lie where every node sees them, or in the registry; what is opened is
compared with what the driver opened. Without GPUs a task trains on one core, and its figures are those of a local run
on one thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cardialign.cluster.environment.handed_on import adopt
from cardialign.cluster.evaluations.tasks import RayTasks, sign_of_life
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.probing.fine_tune import FineTuned, FineTuneOptions
from cardialign.pretrain.evaluation.probing.one_thread import one_thread
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
from cardialign.pretrain.evaluation.probing.tuned import tuned_by
from cardialign.pretrain.export.usable import UsableEncoder


@dataclass(frozen=True)
class SeedJob:
    """start: opens the encoder, or a section `encoder:` for random weights; digest: of that encoder, fingerprint: of
    the set at `shards`, as the driver saw them; sign: a file that every node can touch."""

    start: Callable[[], contextlib.AbstractContextManager[UsableEncoder]] | dict[str, object]
    digest: str
    shards: str
    fingerprint: str
    task: ProbeTask
    options: FineTuneOptions
    sign: Path


def work_on_seed(job: SeedJob, environment: dict[str, str]) -> FineTuned:
    """What a Ray task does.

    Raises as the opening and as `tuned_by`; DataError when encoder or shards are others here than on the driver.
    """
    adopt(environment)
    shard_set = ShardSet.open(job.shards)
    if shard_set.fingerprint != job.fingerprint:
        raise _others(f"the shards at {job.shards}")
    with sign_of_life(job.sign), one_thread():
        if isinstance(job.start, dict):
            return tuned_by(job.start, shard_set, job.task, job.options)
        with job.start() as encoder:
            if encoder.digest != job.digest:
                raise _others("the files of the encoder")
            return tuned_by(encoder, shard_set, job.task, job.options)


def _others(what: str) -> DataError:
    return DataError(
        f"{what} on a node of the cluster are not those that this command opened",
        "name a folder that every node mounts, or an encoder of the registry (models:/NAME@ALIAS)",
    )


@dataclass(frozen=True)
class RaySeeds:
    """Trains seeds as Ray tasks; address and workers as of `RayTasks`; job: the same for all but the seed."""

    job: SeedJob
    address: str | None
    workers: int = 0

    def __call__(self, seeds: Sequence[int]) -> Iterator[tuple[int, FineTuned]]:
        """(place, what was learnt) of each seed as it ends. Raises as `RayTasks.run` and `work_on_seed`."""
        jobs = [
            replace(
                self.job,
                options=self.job.options.model_copy(update={"seed": seed}),
                sign=self.job.sign.with_name(f".seed-{seed}.alive"),
            )
            for seed in seeds
        ]
        tasks = RayTasks(work_on_seed, _name, _sign, "the fine-tuning", self.address, self.workers, gpu_each=True)
        yield from tasks.run(jobs)


def _name(job: SeedJob) -> str:
    return f"{job.task.name}, seed {job.options.seed}"


def _sign(job: SeedJob) -> Path:
    return job.sign
