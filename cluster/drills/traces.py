"""Whether two runs were the same: their traces, bit for bit, and what was lost on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cardialign.cluster.drills.outcome import BrokenError, Outcome
from cardialign.cluster.runs.planned import stepped
from cardialign.pretrain.run.trace import read_trace

OF_THE_CLOCK = ("seconds", "records_per_second", "data_", "exchange_share", "mfu", "memory")
"""What a line of a trace says of time, not of the run."""
Line = Mapping[str, Any]


def figures(line: Line) -> dict[str, Any]:
    """What a step computed: the same in every run of this topology."""
    return {name: value for name, value in line.items() if not any(word in name for word in OF_THE_CLOCK)}


def first_difference(found: Sequence[Line], expected: Sequence[Line], of: str = "undisturbed") -> str | None:
    """The first step, figure and both values in which two traces differ; None when they are equal bit for bit."""
    steps = [int(line["step"]) for line in found]
    wanted = [int(line["step"]) for line in expected]
    for line, other in zip(found, expected, strict=False):
        if line["step"] != other["step"]:
            break
        mine, theirs = figures(line), figures(other)
        for name in sorted(mine.keys() | theirs.keys(), key=lambda each: (each != "digest", each != "loss", each)):
            a, b = mine.get(name), theirs.get(name)
            if a != b and not (_nan(a) and _nan(b)):
                return f"step {line['step']}, {name}: {a!r}, {of} {b!r}"
    if steps != wanted:
        odd = sorted(set(steps) ^ set(wanted))
        return f"{len(steps)} steps instead of {len(wanted)}; the first that only one has is {odd[0] if odd else '?'}"
    return None


def _nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def judge_trace(outcome: Outcome, run_dir: Path, expected: Sequence[Line]) -> Outcome:
    """Notes in `outcome` whether the run in `run_dir` ended as the undisturbed one. Raises BrokenError when not."""
    difference = first_difference(read_trace(run_dir), expected)
    outcome.equal, outcome.difference = difference is None, difference or ""
    if difference is not None:
        raise BrokenError(f"the trace differs: {difference}", outcome)
    return outcome


ROUNDING = 1e-6


def judge_rounded_trace(outcome: Outcome, run_dir: Path, expected: Sequence[Line]) -> Outcome:
    """The same between numbers of workers: equal records at each step, and losses that differ by rounding alone."""
    found = read_trace(run_dir)
    same = first_difference([_records(line) for line in found], [_records(line) for line in expected])
    apart = [
        f"step {line['step']}, loss: {line['loss']!r}, undisturbed {other['loss']!r}"
        for line, other in zip(found, expected, strict=False)
        if not abs(line["loss"] - other["loss"]) <= ROUNDING
    ]
    outcome.difference = same or (apart[0] if apart else "")
    outcome.equal = not outcome.difference
    if outcome.difference:
        raise BrokenError(f"the trace differs: {outcome.difference}", outcome)
    return outcome


def _records(line: Line) -> dict[str, Any]:
    return {"step": line["step"], "digest": line.get("digest")}


def judge_way_back(
    outcome: Outcome, folder: Path, fault_at: float, rank: int = 0, again_at: float | None = None
) -> Outcome:
    """Notes how many steps were done twice, and when after `fault_at` the first new one was done.

    again_at: when the run was started again, where that was not by itself: what the old start did until then was done.
    """
    cut = again_at or fault_at
    before = max((step for at, step in stepped(folder, rank) if at <= cut), default=0)
    after = [(at, step) for at, step in stepped(folder, rank) if at > cut]
    outcome.lost = sum(step <= before for _, step in after)
    new = [at for at, step in after if step > before]
    outcome.back = new[0] - fault_at if new else None
    return outcome
