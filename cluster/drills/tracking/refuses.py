"""MLflow refuses connections in the middle of a run: connections are refused."""

from __future__ import annotations

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.tracking.outage import outage


def run(ground: Ground) -> Outcome:
    return outage(ground, "refuse")


DRILL = Drill(
    fault="MLflow refuses connections, and is back",
    promise="No step waits for it, and when it is back every point is in it, once.",
    run=run,
)
