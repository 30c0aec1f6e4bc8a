"""What a benchmark says about dispatch: where our kernels beat what "auto" takes otherwise, and whether it agrees.

And the file that makes it agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from cardialign.kernels.benchmarks.cases import Rows

OPERATIONS = {"contrastive": "contrastive", "patch embedding": "patch-embed", "rotary positions": "rotary"}
"""Operation in the rows -> its name in `cardialign.kernels.dispatch`."""


@dataclass(frozen=True)
class Contest:
    """Our fastest kernel against our PyTorch implementation of one case, by the time of forward and backward.

    The full matrix, compiled or not, is no choice of "auto": it does not fit where it matters.

    taken: "auto" takes a kernel of ours at this size. scale: what `cardialign.kernels.dispatch` goes by.
    """

    op: str
    size: str
    scale: int
    kernel: str
    kernel_ms: float
    other: str
    other_ms: float
    taken: bool

    @property
    def faster(self) -> bool:
        return self.kernel_ms < self.other_ms

    @property
    def agrees(self) -> bool:
        return self.taken == self.faster

    def sentence(self) -> str:
        taken = "auto takes the kernel" if self.taken else "auto takes PyTorch"
        ratio = f"{self.kernel} is {self.other_ms / self.kernel_ms:.2f}x as fast as PyTorch ({self.other})"
        return f"{ratio}; {taken}: {'agrees' if self.agrees else 'DISAGREES'} with the measurement"


def contests(rows: Rows) -> list[Contest]:
    """One per case in which a kernel of ours and what stands for it otherwise were measured."""
    return list(_contests(rows))


def _contests(rows: Rows) -> Iterator[Contest]:
    for (op, size), group in groupby(rows, key=lambda row: (row["op"], row["size"])):
        case = list(group)
        measured = sorted(
            (row for row in case if row["both_ms"] and row["scale"] is not None), key=lambda row: float(row["both_ms"])
        )
        ours, others = ([row for row in measured if row[which]] for which in ("kernel", "otherwise"))
        if ours and others:
            yield Contest(
                op,
                size,
                ours[0]["scale"],
                ours[0]["implementation"],
                ours[0]["both_ms"],
                others[0]["implementation"],
                others[0]["both_ms"],
                any(row["kernel"] and row["auto"] for row in case),
            )


def dispatch_table(report: dict[str, Any]) -> dict[str, Any]:
    """What `cardialign.kernels.dispatch` reads: device, versions, and per operation a smallest scale.

    From that scale on every measured case was won by a kernel; an operation whose largest case was lost has None.
    Raises ValueError when the report holds no kernel that ran on a GPU.
    """
    device = next((each for each in report["devices"] if each["device"] == "cuda"), None)
    found = contests([row for row in report["rows"] if row["device"] == "cuda"])
    if device is None or not found:
        raise ValueError(
            "no kernel was measured on a GPU; run the benchmark on one, with --op contrastive or --op patch-embed"
        )
    smallest: dict[str, int | None] = {}
    for op in {contest.op for contest in found}:
        of_op = [contest for contest in found if contest.op == op]
        lost = max((contest.scale for contest in of_op if not contest.faster), default=-1)
        smallest[OPERATIONS[op]] = min((contest.scale for contest in of_op if contest.scale > lost), default=None)
    return {"device": device["name"], "date": report["date"], "versions": report["versions"], "kernels_from": smallest}
