"""kill -9 while a checkpoint is written, sealed, committed, and an older one pruned: at one touch of a file after the
other."""

from __future__ import annotations

from cardialign.cluster.drills.checkpoints.half_done import AT, copy_of, goes_on
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import EVERY, Ground
from cardialign.cluster.drills.measures import require
from cardialign.cluster.drills.outcome import BrokenError, Outcome
from cardialign.cluster.runs.planned import Fault, mark_of, plan_of, stepped, write_plan
from cardialign.data_shards.files import parse_json
from cardialign.pretrain.training.checkpoints.condition import examine
from cardialign.pretrain.training.checkpoints.files import TEMPORARY, checkpoints_folder, committed

SAVED, MOST = AT + EVERY, 12
"""The step that is saved, and how many write points of all are tried: other ones with another seed."""


def run(ground: Ground) -> Outcome:
    outcome, of = Outcome(lost=0), write_points(ground)
    points = sorted({*ground.random.sample(range(1, of + 1), min(of, MOST - 1)), of})
    hit = [point for point in points if killed_at(ground, point, outcome)]
    require(2 * len(hit) > len(points), f"of the write points {points} only {hit} were hit")
    outcome.note = f"{len(hit)} of {of} write points: {', '.join(map(str, hit))}"
    return outcome


def write_points(ground: Ground) -> int:
    """How often a loop touches files of its checkpoints while it saves once."""
    run_dir = copy_of(ground, "write-points")
    plan = plan_of(run_dir)
    write_plan(plan, (Fault("kill", SAVED - 1, write=10**9), Fault("kill", SAVED + EVERY - 1)))
    ground.loop(run_dir, plan=plan)
    lines = [parse_json(line) for line in (plan / "stepped-0.jsonl").read_text().splitlines()]
    touched = max((int(line["touched"]) for line in lines if line["step"] < SAVED + EVERY), default=0)
    if touched < 10:
        raise BrokenError(f"only {touched} touches of files were seen while a checkpoint was written: nothing is tried")
    return touched


def killed_at(ground: Ground, point: int, outcome: Outcome) -> bool:
    """Kill a loop at one write point and start it again; whether that point came before the next save.

    Raises BrokenError when anything but whole checkpoints is called one, or when the run that goes on is another one.
    """
    run_dir = copy_of(ground, f"killed-writing-{point}")
    plan = plan_of(run_dir)
    write_plan(plan, (Fault("kill", SAVED - 1, write=point), Fault("kill", SAVED + EVERY - 1)))
    ended = ground.loop(run_dir, plan=plan)
    require(ended.codes == (-9,), f"write point {point}: the run ended with {ended.codes}: {ended.said}")
    if not mark_of(plan, 0).exists():
        return False  # written behind the steps, it touches its files as it comes
    found = [examine(path) for _, path in committed(run_dir)]
    bad = [each.said() for each in found if each.condition != "verified"]
    require(not bad, f"write point {point}: {'; '.join(bad)}")
    require(bool(found), f"write point {point}: no checkpoint is left")
    done = max(step for _, step in stepped(plan))
    half_written = set(checkpoints_folder(run_dir).glob(f"{TEMPORARY}*"))
    mark_of(plan, 0).unlink()
    goes_on(ground, run_dir, outcome, done=done)
    left = sorted(map(str, half_written & set(checkpoints_folder(run_dir).glob(f"{TEMPORARY}*"))))
    require(not left, f"write point {point}: {left} was not swept away")
    return True


DRILL = Drill(
    fault="kill -9 at write points of a checkpoint",
    promise="Whatever is called a checkpoint is whole, there always is one, what was half-written is swept away, and "
    "the run goes on bit for bit.",
    run=run,
)
