"""The grid of a protocol: every task of it x every share of the training records, in the sets that are there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.probing.cells import ProbePlan
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask, task_of_protocol
from cardialign.pretrain.evaluation.protocols import ProtocolTask, load_task, tasks_of
from cardialign.pretrain.evaluation.scoring import usable_classes
from cardialign.pretrain.export.usable import UsableEncoder


@dataclass(frozen=True)
class GridPlan:
    """protocol: its name; sets: name of a data set -> shard set; probe: how each cell is probed; label_files: those of
    the protocol, where it needs them."""

    protocol: str
    sets: Mapping[str, ShardSet]
    probe: ProbePlan
    label_files: Path | None = None

    def __post_init__(self) -> None:
        known = list(dict.fromkeys(set_of(task) for task in self.tasks))
        wrong = [name for name in self.sets if name not in known]
        if wrong or not self.sets:
            raise UsageError(
                f"{self.protocol} has no tasks on a set {wrong[0]!r}" if wrong else "no set is given",
                f"write --sets NAME=SHARDS with one of {', '.join(known)}",
            )
        for name, shard_set in self.sets.items():
            taken = {source for task in self.tasks if set_of(task) == name for source in task.values["sources"]}
            source = str(shard_set.manifest["source"].get("name"))
            if source not in taken:
                raise UsageError(
                    f"{shard_set.path} was built from {source}, which is not {name} of {self.protocol}",
                    f"give {name} a shard set built from {' or '.join(sorted(taken))}, or {source} by its own name",
                )

    @property
    def tasks(self) -> list[ProtocolTask]:
        return [load_task(f"{self.protocol}:{name}") for name in tasks_of(self.protocol)]

    def facts(self, encoder: UsableEncoder) -> dict[str, Any]:
        """What all cells of one grid have in common."""
        return {
            "version": 1,
            "encoder": encoder.digest,
            "protocol": self.protocol,
            "style": self.probe.options.style,
            "seeds": self.probe.options.seeds,
            "bootstrap": self.probe.options.bootstrap,
            "floors": list(self.probe.beside(encoder)),
            "supervised": list(self.probe.options.supervised),
            "seed": self.probe.seed,
            "attention": self.probe.attention,
            "sets": {name: shard_set.fingerprint for name, shard_set in self.sets.items()},
        }


@dataclass(frozen=True)
class OpenTask:
    """A task in its set: what it holds, or why it cannot be probed there (`missing`)."""

    task: ProtocolTask
    set_name: str
    found: ProbeTask | None
    missing: str = ""

    def digest(self, shard_set: ShardSet) -> str:
        """sha256 of records, labels and parts."""
        assert self.found is not None
        content = hashlib.sha256(f"{self.task.digest} {shard_set.fingerprint}".encode())
        parts = self.found.parts
        for array in (self.found.rows, parts.train, parts.validation, parts.test):
            content.update(array.astype("<i8").tobytes())
        content.update(np.packbits(self.found.truth).tobytes())
        if self.found.decided is not None:
            content.update(np.packbits(self.found.decided).tobytes())
        return content.hexdigest()


def set_of(task: ProtocolTask) -> str:
    """The data set that a task is about, by its first name."""
    return str(task.values["sources"][0])


def open_tasks(plan: GridPlan) -> list[OpenTask]:
    """Every task of the protocol, in its order; what a set does not hold is said, and no error.

    Raises UserError where no task at all can be probed.
    """
    opened = [_opened(plan, task) for task in plan.tasks]
    if all(each.found is None for each in opened):
        reasons = "\n".join(f"  - {each.task.name}: {each.missing}" for each in opened)
        raise UserError(
            f"no task of {plan.protocol} can be probed:\n{reasons}", "give sets that hold what one of them asks for"
        )
    return opened


def _opened(plan: GridPlan, task: ProtocolTask) -> OpenTask:
    name = set_of(task)
    shard_set = plan.sets.get(name)
    if shard_set is None:
        return OpenTask(task, name, None, f"no set of it was given (--sets {name}=SHARDS)")
    try:
        found = task_of_protocol(task.spec, shard_set, plan.label_files)
    except (UserError, DataError) as error:
        return OpenTask(task, name, None, error.problem)
    usable, _ = usable_classes(found.truth[found.parts.test], found.decided_in(found.parts.test))
    if not usable.size:
        count = len(found.parts.test)
        return OpenTask(task, name, None, f"no class has both positives and negatives among {count} test records")
    return OpenTask(task, name, found)
