"""What a drill is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome


@dataclass(frozen=True)
class Drill:
    """fault: in a few words. promise: what holds all the same, one sentence. run: sets the fault and looks.

    `run` raises BrokenError where the promise does not hold and SkippedError where it cannot be tried. ray: it starts
    the command `cardialign pretrain`, on the cluster that was named or a local Ray; otherwise the loop alone, in
    processes of this machine.
    """

    fault: str
    promise: str
    run: Callable[[Ground], Outcome]
    ray: bool = False
