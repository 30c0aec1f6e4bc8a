"""The contamination ledger: of every figure, which of the scored patients and recordings were trained on before.

A line per figure and set. What cannot be compared is "unknown" with the reason, never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

NONE, FOUND, UNKNOWN = "none", "found", "unknown"
"""Whether anything is shared."""
NOTHING_TRAINED = "it was never trained"
PRETRAINING, LABELLED = "pretraining", "the labelled training records"


@dataclass(frozen=True)
class LedgerLine:
    """figure: whose; scored: on which records; against: what was trained on; status as in `overlap`.

    patients of of_patients scored patients, and recordings of of_recordings scored ones, are in both. reason: why the
    line is unknown, or why there may be more.
    """

    figure: str
    scored: str
    against: str
    status: str
    patients: int
    of_patients: int
    recordings: int
    of_recordings: int
    reason: str = ""

    def __str__(self) -> str:
        head = f"ledger {self.figure} x {self.scored}, {self.against}"
        if self.status == UNKNOWN:
            return f"{head}: unknown ({self.reason})"
        least = " at least" if self.reason and self.status == FOUND else ""
        return (
            f"{head}: shared patients{least} {self.patients} of {self.of_patients}, "
            f"shared recordings{least} {self.recordings} of {self.of_recordings}"
            + (f" ({self.reason})" if self.reason else "")
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "line": str(self)}


def of_pretraining(figure: str, scored: str, found: Mapping[str, Any]) -> LedgerLine:
    """The line of an encoder, from what `overlap.find_overlap` found, as a result says it (`Overlap.to_dict`)."""
    return LedgerLine(
        figure,
        scored,
        PRETRAINING,
        found["status"],
        found["patients"],
        found.get("of_patients", 0),
        found["recordings"],
        found.get("of_records", 0),
        found.get("doubt", "") or (found["note"] if found["status"] == UNKNOWN else ""),
    )


def told(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a result, for people; what is alike but for the figure stands together."""
    together: dict[tuple[Any, ...], list[str]] = {}
    for line in lines:
        key = tuple((name, value) for name, value in line.items() if name not in ("figure", "line"))
        together.setdefault(key, []).append(line["figure"])
    return [str(LedgerLine(figure=", ".join(figures), **dict(key))) for key, figures in together.items()]


def opening_line(opening: Mapping[str, Any]) -> str:
    """One sentence beside the figures."""
    times, task = opening["times"], opening["task"]
    if times is None:
        return (
            f"test records of {task}: opened, and how often before is not known (nothing can be written beside the set)"
        )
    if times == 1:
        return f"test records of {task}: opened once for this run"
    first = opening["earlier"][0]
    return (
        f"TEST RECORDS OF {task} OPENED {times} TIMES for this run, first {first['time']} by {first['what']}: "
        "what was chosen by them since is no estimate of anything new"
    )


def twice_notes(recordings: int) -> list[str]:
    """A line on scored recordings that stand under several patients, where there are any."""
    if not recordings:
        return []
    stand = "1 recording stands" if recordings == 1 else f"{recordings} recordings stand"
    return [f"{stand} under several patients: the intervals take these for different people and are too narrow"]
