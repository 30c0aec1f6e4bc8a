"""A worker of two whose loop stands still for good while its process lives: a deadlock, a read that never returns."""

from __future__ import annotations

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.workers.hung import hang


def run(ground: Ground) -> Outcome:
    # Its thread that beats goes on: life is no progress.
    return hang(ground, "worker-deadlocked", "stand", "in _set", {0: "/torch/distributed/", 1: "in _set"})


DRILL = Drill(
    fault="a worker's loop stands still for good, its process lives",
    promise="The run finds within its limit that nothing moves, though all ranks beat, names the one that waits for no "
    "other and where it stands, goes on from its last checkpoint, and ends as an undisturbed one, bit for bit.",
    run=run,
    ray=True,
)
