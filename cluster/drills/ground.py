"""What drills stand on: a folder with a tiny shard set, a tiny run of tiny steps, and its undisturbed traces."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cardialign.cluster.runs.planned import Fault
from cardialign.data_shards.errors import UserError

if TYPE_CHECKING:
    from cardialign.cluster.drills.command import Around, Pretrain
    from cardialign.cluster.drills.loop import Ended
    from cardialign.data_shards.sources.base import Source
    from cardialign.pretrain.config import RunConfig

STEPS, EVERY, EPOCH_RECORDS = 60, 5, 30
MOST_LOST = 2 * EVERY
"""Steps that may be done again: since the last checkpoint, and since the one before while that is on its way to the
disk."""
PACE = 0.05
"""Seconds of a step that is to be hit: 60 of them are three seconds."""
RECIPE: dict[str, Any] = {
    "name": "drill",
    "seed": 11,
    "data": {"normalisation": "none", "threads": 1},
    "encoder": {
        "name": "cardialign", "size": "tiny", "depth": 1, "width": 16, "heads": 2, "embedding_dim": 16,
        "patches": [{"kernel_ms": 200, "stride_ms": 200}],
    },
    "method": {"name": "simclr", "temperature": 0.1, "projection_dim": 16},
    "optimizer": {"lr": 1.0e-3},
    "schedule": {"name": "cosine", "warmup_fraction": 0.1},
    "collapse": {"enabled": False},
    "training": {
        "global_batch": 4, "steps": STEPS, "precision": "fp32", "zero_stage": 1,
        "checkpoint_every": EVERY, "keep_checkpoints": 3, "log_every": 5,
    },
}  # fmt: skip
"""SimCLR reads no reports: no language model, no text bank. Its views draw random numbers, dropout too."""


class Ground:
    """One folder of drills, on storage that every worker of `address` sees. seed: where faults fall."""

    def __init__(self, folder: Path, address: str | None = None, seed: int = 0) -> None:
        self.folder, self.address, self.seed = folder.expanduser().absolute(), address, seed
        self.runs = self.folder / f"runs-{time.strftime('%Y%m%d-%H%M%S')}"
        self.runs.mkdir(parents=True)
        self.random = random.Random(seed)  # noqa: S311 - a drill can be repeated
        self._known: dict[str, list[dict[str, Any]]] = {}
        self._commands: list[Pretrain] = []
        self._runs = 0

    def step(self) -> int:
        """A step to be hit at: behind the first checkpoint, before the last."""
        return self.random.randint(EVERY + 1, STEPS - 3 * EVERY)

    def fault(self, kind: Literal["kill", "stop"], rank: int = 0) -> Fault:
        """A fault in the middle of a step."""
        return Fault(kind, self.step(), rank, after=self.random.uniform(0.001, PACE))

    @cached_property
    def shards(self) -> Path:
        return make_shards(self.folder / "ground")

    @cached_property
    def recipe(self) -> Path:
        """The tiny run as a file, for commands; JSON is YAML."""
        path = self.folder / "drill.yaml"
        path.write_text(json.dumps({**RECIPE, "data": {**RECIPE["data"], "shards": str(self.shards)}}, indent=1))
        return path

    def config(self, *assignments: str) -> RunConfig:
        from cardialign.pretrain.config import load_config

        return load_config(str(self.recipe), list(assignments))

    def run_dir(self, name: str) -> Path:
        """A run directory that nobody has used; its plan of faults belongs beside it (`plan_of`)."""
        self._runs += 1
        return self.runs / f"{self._runs:04d}-{name}"

    def loop(self, run_dir: Path, *assignments: str, world: int = 1, plan: Path | None = None) -> Ended:
        """The loop alone, until it ends."""
        from cardialign.cluster.drills.loop import Loop

        return Loop(self.config(*assignments), run_dir, world=world, plan=plan).wait()

    def pretrain(
        self, run_dir: Path, *words: str, workers: int | str = 1, around: Around | None = None
    ) -> Pretrain:  # fmt: skip
        """The command `cardialign pretrain`, started."""
        from cardialign.cluster.drills.command import Pretrain

        more = [] if self.address is None else ["--address", self.address]
        command = Pretrain(self.recipe, run_dir, self.folder / "tracking", [*more, *words], workers, around)
        self._commands.append(command)
        return command

    def close(self) -> None:
        """End the commands that a drill which failed, or was interrupted, has left running."""
        while self._commands:
            self._commands.pop().end()

    def undisturbed(self, world: int = 1) -> list[dict[str, Any]]:
        """The trace of the loop alone that nothing hits."""
        return self._once(f"loop on {world}", lambda path: self._must(self.loop(path, world=world)))

    def undisturbed_on_ray(self, workers: int = 1) -> list[dict[str, Any]]:
        """The trace of the command that nothing hits. On a cluster it is computed where the disturbed run is; here the
        loop alone computes the same, bit for bit, without the minute that a Ray takes."""
        if self.address is None:
            return self.undisturbed(workers)
        return self._once(f"ray on {workers}", lambda path: self.pretrain(path, workers=workers).finished())

    def _once(self, name: str, run: Callable[[Path], object]) -> list[dict[str, Any]]:
        from cardialign.pretrain.run.trace import read_trace

        if name not in self._known:
            path = self.run_dir(f"undisturbed-{name.replace(' ', '-')}")
            run(path)
            self._known[name] = read_trace(path)
        return self._known[name]

    def _must(self, ended: Ended) -> None:
        if not ended.done:
            raise UserError(f"the undisturbed run of the drills failed: {ended.said or ended.codes}", "")

    def clear(self) -> None:
        """Take away what the runs left; called when a promise was kept."""
        shutil.rmtree(self.runs, ignore_errors=True)


def make_shards(
    folder: Path, records_per_shard: int = 8, patients: int = EPOCH_RECORDS,
    changed: Callable[[Source], Source] | None = None,
) -> Path:  # fmt: skip
    """A shard set of virtual patients: 12 leads, 2.5 s at 100 Hz, several shards in an epoch. changed: their source."""
    from cardialign.data_shards.build.build import SetPlan, build_shards
    from cardialign.data_shards.cohort.generate import Cohort, make_cohort
    from cardialign.data_shards.record import SignalSpec
    from cardialign.data_shards.sources import open_source

    if (folder / "shards" / "manifest.json").is_file():
        return folder / "shards"
    shutil.rmtree(folder, ignore_errors=True)
    cohort = make_cohort(folder / "cohort", Cohort(patients=patients, seed=3, sampling_rate=100)).path
    source = open_source("mimic-iv-ecg", cohort, labels=str(cohort / "truth.csv"), salt="patients who never lived")
    source = source if changed is None else changed(source)
    plan = SetPlan(SignalSpec(sampling_rate=100.0, seconds=2.5), records_per_shard=records_per_shard)
    return build_shards(source, folder / "shards", plan, workers=1).path
