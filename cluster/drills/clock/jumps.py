"""The clock of the machine jumps during a run: a day forwards, then to an hour before the truth.

In every Python process of the run, driver, controller and workers, `time.time` jumps; the machine's own clock, which
others use, is left alone.
"""

from __future__ import annotations

import time
from pathlib import Path

from cardialign.cluster.drills.command import Around
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import EVERY, MOST_LOST, Ground
from cardialign.cluster.drills.measures import deaths, judge_run, require, set_at
from cardialign.cluster.drills.outcome import BrokenError, Outcome, SkippedError
from cardialign.cluster.drills.patience import Patience, slowness
from cardialign.cluster.runs.planned import Fault, plan_of, write_plan
from cardialign.cluster.watching.decisions import read_decisions
from cardialign.cluster.watching.state import run_state
from cardialign.data_shards.files import read_json
from cardialign.pretrain.run.files import LOCK
from cardialign.pretrain.run.lock import BEAT_SECONDS, HeldError, locked_run

JUMPING, FILE = Path(__file__).parent / "jumping", "CARDIALIGN_DRILL_CLOCK"
DAY, HOUR = 86400.0, 3600.0
PACE, LIMIT_SECONDS = 0.3, 45.0
FORWARDS, BACKWARDS, KILLED = EVERY + 1, 4 * EVERY + 1, 8 * EVERY + 2
"""Behind which steps the clock jumps, and a worker dies."""


def run(ground: Ground) -> Outcome:
    if ground.address is not None:
        raise SkippedError("the clocks of a cluster are not ours: tried without --address alone, on a Ray of its own")
    expected = ground.undisturbed_on_ray()
    run_dir, outcome = ground.run_dir("clock"), Outcome()
    clock = run_dir.with_name(f"{run_dir.name}.clock")
    clock.write_text("0")
    write_plan(plan_of(run_dir), (Fault("kill", KILLED),), PACE)
    hang = f"{LIMIT_SECONDS * slowness() / 60:.3f}"
    around = Around({FILE: str(clock)}, modules=(JUMPING,))
    command = ground.pretrain(run_dir, "--hang-minutes", hang, around=around)
    for step, shift in ((FORWARDS, DAY), (BACKWARDS, -HOUR)):
        command.until_step(step)
        clock.write_text(str(shift))
        at = time.time()
        _still_held(run_dir)
        command.until_step_again(at)
    answer = command.finished()
    at = set_at(plan_of(run_dir))
    died, restarts = deaths(run_dir), run_state(run_dir).restarts
    require(len(died) == 1 and answer["restarts"] == 1, f"{len(died)} groups died, the command says {answer}")
    require("rank 0" in died[0][1] and died[0][0] < at - HOUR / 2, f"it died of another cause, or no jump: {died}")
    require([each.kind for each in read_decisions(run_dir)] == ["retry"], f"decided was {read_decisions(run_dir)}")
    require([each.cause for each in restarts] == [died[0][1]], f"`status` tells the restart otherwise: {restarts}")
    judge_run(outcome, run_dir, expected, at, MOST_LOST, command.started)
    outcome.note = "a day forwards, an hour backwards, and a worker killed behind that: its cause is told"
    return outcome


def _still_held(run_dir: Path) -> None:
    """The lease of the run beats on, and whoever wants the run is refused."""
    patience, before = Patience(10 * BEAT_SECONDS), (read_json(run_dir / LOCK) or {}).get("beat")
    while (read_json(run_dir / LOCK) or {}).get("beat") in (before, None):
        require(not patience.over(), f"the lease beats no more; its beat was {before}")
        time.sleep(0.1)
    try:
        with locked_run(run_dir):
            raise BrokenError("the lease could be taken while the run goes on")
    except HeldError:
        pass
    state = run_state(run_dir).state
    require(state in ("running", "finished"), f"`status` calls the run {state}")


DRILL = Drill(
    fault="the clock jumps: a day forwards, an hour back",
    promise="The run goes on, its lease is held, nothing is called hung or lost, and a worker that dies afterwards is "
    "restarted with its cause told; bit for bit the undisturbed run.",
    run=run,
    ray=True,
)
