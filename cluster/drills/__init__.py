"""The one table of drills: name -> the module of this folder that holds it, as `DRILL`.

They run in this order. A drill is one file; the command and the tests of faults use the same ones.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cardialign.cluster.drills.drill import Drill

DRILLS: dict[str, str] = {
    "worker-killed": "workers.killed",
    "survivors": "workers.survivors",
    "worker-stopped": "workers.stopped",
    "worker-hung": "workers.hung",
    "worker-deadlocked": "workers.deadlocked",
    "resized": "workers.resized",
    "node-lost": "workers.node_lost",
    "network-paused": "network.paused",
    "network-cut": "network.cut",
    "given-up": "workers.given_up",
    "sigterm": "driver.sigterm",
    "sigterm-twice": "driver.sigterm_twice",
    "ctrl-c": "driver.ctrl_c",
    "driver-killed": "driver.killed",
    "two-drivers": "driver.two",
    "stop-file": "driver.stop_file",
    "ray-head": "driver.head_lost",
    "clock": "clock.jumps",
    "checkpoint-killed": "checkpoints.killed_writing",
    "checkpoint-flipped": "checkpoints.flipped",
    "checkpoint-cut": "checkpoints.cut",
    "checkpoint-none": "checkpoints.none_sound",
    "shard-flipped": "shards.flipped",
    "shard-cut": "shards.cut",
    "shard-deleted": "shards.deleted",
    "shard-slow": "shards.slow",
    "model-flipped": "model.flipped",
    "model-cut": "model.cut",
    "nan-skipped": "numbers.skipped",
    "nan-stops": "numbers.stops",
    "disk-full": "storage.full",
    "disk-read-only": "storage.read_only",
    "mlflow-refuses": "tracking.refuses",
    "mlflow-hangs": "tracking.hangs",
    "mlflow-fails": "tracking.fails",
}


def drill_of(name: str) -> Drill:
    """The drill of a name of the table."""
    found: Drill = importlib.import_module(f"{__name__}.{DRILLS[name]}").DRILL
    return found
