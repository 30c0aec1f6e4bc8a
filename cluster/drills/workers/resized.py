"""A run that goes on with another number of workers: 2, then 1, 2 and 4. The loop alone, stopped at every change."""

from __future__ import annotations

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import STEPS, Ground
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.outcome import Outcome
from cardialign.cluster.drills.traces import judge_rounded_trace
from cardialign.data_shards.errors import DONE, STOPPED

SIZES = (2, 1, 2, 4)


def run(ground: Ground) -> Outcome:
    from cardialign.cluster.drills.loop import Loop

    expected = ground.undisturbed(2)
    outcome, config = Outcome(), ground.config()
    run_dir = ground.run_dir("resized")
    stops = sorted(ground.random.sample(range(2, STEPS - 1), len(SIZES) - 1))
    for workers, first, last in zip(SIZES, [0, *stops], [*stops, None], strict=True):
        ended = Loop(config, run_dir, world=workers, until=None if last is None else last - first).wait()
        code = DONE if last is None else STOPPED
        require(ended.codes[0] == code, f"the run failed on {workers} workers: {ended.said or ended.codes}")
    outcome.note = f"2 workers, 1 from step {stops[0]}, 2 from {stops[1]}, 4 from {stops[2]}; losses to 1e-6"
    return judge_rounded_trace(outcome, run_dir, expected)


DRILL = Drill(
    fault="another number of workers: 2, 1, 2, 4",
    promise="The run goes on from its checkpoint with any of them: the same records in every batch, the losses to "
    "rounding.",
    run=run,
)
