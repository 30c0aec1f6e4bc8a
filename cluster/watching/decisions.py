"""What was decided about a run while it ran: to go on after a death, with how many workers, or to end. Values in a file
of the run directory, one line each."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from cardialign.data_shards.files import json_lines, read_bytes
from cardialign.pretrain.run.files import ATTEMPTS, DECISIONS

Kind = Literal["retry", "resize", "stop"]


@dataclass(frozen=True)
class Decision:
    """kind: "retry", the same number of workers again; "resize", another number; "stop", the run ends here.

    cause: why, in words. before, after: workers; 0 after a stop. attempt: which worker group of this start it ended, 1
    is the first, 0 before it. failures, of: worker groups that died, and how many may. step: the last that was done.
    planned: the group was stopped at a checkpoint for it, so that no step is done twice. time: Unix time.
    """

    kind: Kind
    cause: str
    before: int
    after: int
    attempt: int
    failures: int = 0
    of: int = 0
    step: int = 0
    planned: bool = False
    time: float = field(default_factory=time.time)

    def told(self) -> str:
        """In one line, for a log and for `status`."""
        workers = f"{self.before}" if self.kind != "resize" else f"{self.before}->{self.after}"
        return (
            f"{self.kind} workers={workers} step={self.step} group={self.attempt} "
            f"failures={self.failures}/{self.of}: {self.cause}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def starts_of(run_dir: Path) -> int:
    """Worker groups that have begun in a run so far. What is noted of a group says it, too: no clock, which may be set
    meanwhile, has to tell what came before what."""
    try:
        return read_bytes(run_dir / ATTEMPTS).count(b"\n")
    except OSError:
        return 0


def decision_of(values: dict[str, Any]) -> Decision | None:
    """What a line of the file says; None for one that is not of this form."""
    known = {each.name: values[each.name] for each in fields(Decision) if each.name in values}
    numbers = [known.get(name, 0) for name in ("before", "after", "attempt", "failures", "of", "step")]
    if known.get("kind") not in get_args(Kind) or not isinstance(known.get("cause"), str):
        return None
    if any(not isinstance(number, int) or isinstance(number, bool) for number in numbers):
        return None
    at = known.get("time")
    if not isinstance(at, int | float) or isinstance(at, bool) or not math.isfinite(at):
        return None
    return Decision(**{"before": 0, "after": 0, "attempt": 0, **known})


def read_decisions(run_dir: Path, after: int = 0) -> list[Decision]:
    """The decisions about a run, oldest first; `after` leaves out as many lines."""
    try:
        content = read_bytes(run_dir / DECISIONS)
    except OSError:
        return []
    told = list(json_lines(content.split(b"\n")))
    return [found for values in told[after:] if (found := decision_of(values))]
