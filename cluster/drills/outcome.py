"""What a drill finds out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["kept", "broken", "skipped"]


@dataclass
class Outcome:
    """What became of one drill; times in seconds after the fault was set.

    detected: until the product said, or showed, that something is wrong. lost: steps that were done twice. back: until
    the first step that had not been done before the fault. equal: trace and digest are those of the undisturbed run.
    leftovers: what of ours was still there at the end. note: what else is worth a line.
    """

    detected: float | None = None
    lost: int | None = None
    back: float | None = None
    equal: bool | None = None
    difference: str = ""
    leftovers: list[str] = field(default_factory=list)
    verdict: Verdict = "kept"
    note: str = ""
    seconds: float = 0.0


class BrokenError(Exception):
    """The promise of a drill does not hold; says what was found instead. outcome: what was measured by then."""

    def __init__(self, found: str, outcome: Outcome | None = None) -> None:
        super().__init__(found)
        self.outcome = outcome


class SkippedError(Exception):
    """A drill cannot be tried here; says why."""
