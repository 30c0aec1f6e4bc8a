"""MLflow hangs in the middle of a run: no request is answered."""

from __future__ import annotations

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.tracking.outage import outage


def run(ground: Ground) -> Outcome:
    return outage(ground, "hang")


DRILL = Drill(
    fault="MLflow hangs, and is back",
    promise="No step waits for it, and when it is back every point is in it, once.",
    run=run,
)
