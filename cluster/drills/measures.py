"""What every drill of a run looks at: when its fault was set, when it was noticed, and how the run ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cardialign.cluster.drills.command import Pretrain
from cardialign.cluster.drills.leftovers import leftovers
from cardialign.cluster.drills.outcome import BrokenError, Outcome
from cardialign.cluster.drills.traces import judge_trace, judge_way_back
from cardialign.cluster.runs.planned import mark_of, plan_of
from cardialign.data_shards.files import parse_json, read_json_object
from cardialign.pretrain.run.files import DEATHS


def set_at(plan: Path, number: int = 0) -> float:
    """When fault `number` of a plan was set. Raises BrokenError when it never was: then nothing was tried."""
    try:
        return float(read_json_object(mark_of(plan, number))["time"])
    except (OSError, ValueError):
        raise BrokenError("the fault was never set: the run ended before it") from None


def deaths(run_dir: Path) -> list[tuple[float, str]]:
    """(time, cause) of every worker group that died, as the run directory says."""
    found = []
    with contextlib.suppress(OSError):
        for line in (run_dir / DEATHS).read_text().splitlines():
            values = parse_json(line)
            found.append((float(values["time"]), str(values["cause"])))
    return found


def judge_run(
    outcome: Outcome, run_dir: Path, expected: Sequence[dict[str, Any]], fault_at: float, most_lost: int,
    since: float, again_at: float | None = None,
) -> Outcome:  # fmt: skip
    """The whole of a run that has ended: steps done twice, the way back, the trace, what is left.

    since: when its first command was started; again_at: when the second was, where one was needed. Raises BrokenError
    when it lost more than `most_lost` steps, is another run, or left something behind.
    """
    judge_way_back(outcome, plan_of(run_dir), fault_at, again_at=again_at)
    judge_trace(outcome, run_dir, expected)
    require((outcome.lost or 0) <= most_lost, f"{outcome.lost} steps were done again; at most {most_lost} are promised")
    outcome.leftovers = leftovers(run_dir, plan_of(run_dir), since)
    require(not outcome.leftovers, f"left behind: {', '.join(outcome.leftovers[:4])}")
    return outcome


def stopped_once(command: Pretrain, step: int, number: int, code: int, seconds: float = 120.0) -> tuple[float, float]:
    """Signal the command after `step`, and wait until it has ended with `code`; (when, how long that took)."""
    command.until_step(step)
    at = command.signal(number)
    return at, ended_with(command, code, at, seconds)


def ended_with(command: Pretrain, code: int, at: float, seconds: float = 120.0) -> float:
    """How long after `at` the command ended with `code`. Raises BrokenError when it did not, or said another."""
    found = command.wait(seconds)
    require(found == code, f"the command ended with {found} instead of {code}: {command.answer.get('problem', '')}")
    return time.time() - at


def require(holds: object, otherwise: str) -> None:
    """Raises BrokenError with `otherwise` where something does not hold."""
    if not holds:
        raise BrokenError(otherwise)
