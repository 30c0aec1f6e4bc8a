"""MLflow answers 500 in the middle of a run: every request is answered with 500."""

from __future__ import annotations

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.tracking.outage import outage


def run(ground: Ground) -> Outcome:
    return outage(ground, "500")


DRILL = Drill(
    fault="MLflow answers 500, and is back",
    promise="No step waits for it, and when it is back every point is in it, once.",
    run=run,
)
