"""NaN on one rank of two in one step, within the budget for such steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import Ground
from cardialign.cluster.drills.measures import require, set_at
from cardialign.cluster.drills.outcome import BrokenError, Outcome
from cardialign.cluster.drills.traces import first_difference
from cardialign.cluster.runs.planned import Fault, plan_of, write_plan
from cardialign.data_shards.files import read_json_object
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.numbers.bad_steps import bad_step_file


def run(ground: Ground) -> Outcome:
    expected, before = ground.undisturbed(2), ground.step()
    found = [_spoilt(ground, rank, before) for rank in (1, 0)]
    for trace in found:
        left_out = [int(line["step"]) for line in trace if "skipped" in line]
        require(left_out == [before + 1], f"left out are the steps {left_out}, not {before + 1} alone")
        difference = first_difference(trace[:before], expected[:before])
        require(difference is None, f"before the fault the trace differs: {difference}")
        records = first_difference(_records(trace), _records(expected))
        require(records is None, f"other records: {records}")
    # Whichever rank had the NaN: where one of the two had made the update, their weights would differ from here on.
    difference = first_difference(found[0][before + 1 :], found[1][before + 1 :], of="with the other rank's")
    require(difference is None, f"behind it, one rank's NaN is not the other's: {difference}")
    return Outcome(
        lost=0, equal=True, note=f"step {before + 1} was left out, by both ranks; the NaN was on one, each once"
    )


def _spoilt(ground: Ground, rank: int, before: int) -> list[dict[str, Any]]:
    """The trace of a run whose `rank` has NaN in the step behind `before`, and says so."""
    run_dir = ground.run_dir(f"nan-on-{rank}")
    plan = plan_of(run_dir)
    write_plan(plan, (Fault("nan", before, rank=rank),))
    ended = ground.loop(run_dir, "training.bad_steps=1", world=2, plan=plan)
    require(ended.done, f"the run did not go on ({ended.codes}): {ended.said}")
    set_at(plan)
    said = kept_batch(run_dir, before + 1)
    require(said["skipped"], f"it is not noted as left out: {said}")
    finite = [all(each["features_finite"] for each in share["records"]) for share in said["ranks"]]
    require(finite == [each != rank for each in (0, 1)], f"the features of the ranks are noted as finite: {finite}")
    return read_trace(run_dir)


def kept_batch(run_dir: Path, step: int) -> dict[str, Any]:
    """What a run keeps of a bad step. Raises BrokenError where that is nothing."""
    try:
        return dict(read_json_object(bad_step_file(run_dir, step)))
    except (OSError, ValueError) as error:
        raise BrokenError(f"the batch of step {step} was not kept: {error}") from None


def _records(trace: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"step": line["step"], "digest": line["digest"]} for line in trace]


DRILL = Drill(
    fault="NaN on one rank, within the budget",
    promise="All ranks leave the step out together, keep its batch, and go on with the same records; which rank had it "
    "makes no difference.",
    run=run,
)
