"""The local spool: JSON lines beside the run, read again from a cursor. Tracking can be down and nothing is lost.

The training loop writes `metrics.jsonl`, the driver appends to `system.jsonl`. A reader hands out complete lines only,
and a `Cursor` remembers how far a consumer has got. A resumed run replaces `metrics.jsonl` by a copy that ends at its
checkpoint and writes the steps behind it again: the cursor notices the new file, and a step that it has passed is not
handed out a second time.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardialign.data_shards.files import open_regular, parse_json

log = logging.getLogger(__name__)


@dataclass
class Cursor:
    """How far one consumer has read: the file (inode), the byte offset after its last line, the highest step taken.

    `intended_step` and `intended_time`: the consumer was about to store the steps up to this one under this time
    (see `cardialign.cluster.tracking.replay`).
    """

    offset: int = 0
    last_step: int = -1
    inode: int = 0
    intended_step: int = -1
    intended_time: float = 0.0


@dataclass(frozen=True)
class Line:
    """One spool line (empty when there is nothing in it to hand out) and the byte offset right after it."""

    values: dict[str, Any]
    end: int
    inode: int

    @property
    def step(self) -> int:
        return int(self.values.get("step", -1))


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Append one JSON line with a single write, so that a reader never sees two writers mixed."""
    with open(path, "ab") as file:
        file.write((json.dumps(values) + "\n").encode())


class SpoolReader:
    """Lines of one spool file after `cursor`.

    once_per_step: skip steps that the cursor has passed (a resumed run repeats some).
    """

    def __init__(self, path: Path, cursor: Cursor | None = None, *, once_per_step: bool = True) -> None:
        self.path, self.once_per_step = path, once_per_step
        self.cursor = cursor or Cursor()

    def read(self, limit: int = 500) -> list[Line]:
        """Up to `limit` new complete lines; the cursor moves only with `take`.

        A line that is no JSON object is logged and skipped.
        """
        lines: list[Line] = []
        try:
            file = os.fdopen(open_regular(self.path), "rb")  # closed by the with below; only opening may fail
        except OSError:
            return lines
        with file:
            status = os.fstat(file.fileno())
            replaced = status.st_ino != self.cursor.inode or self.cursor.offset > status.st_size
            position, step = 0 if replaced else self.cursor.offset, self.cursor.last_step
            file.seek(position)
            while len(lines) < limit:
                raw = file.readline()
                if not raw.endswith(b"\n"):  # nothing more, or a line still being written
                    break
                position += len(raw)
                values = self._parse(raw, position)
                if self.once_per_step and int(values.get("step", -1)) <= step:
                    values = {}
                step = max(step, int(values.get("step", -1)))
                lines.append(Line(values, position, status.st_ino))
        return lines

    def take(self, lines: list[Line]) -> None:
        """The consumer has stored `lines` for good: move the cursor behind them."""
        for line in lines:
            self.cursor.inode, self.cursor.offset = line.inode, line.end
            self.cursor.last_step = max(self.cursor.last_step, line.step)

    def skip_existing(self) -> None:
        """Move the cursor behind everything that is there now."""
        while lines := self.read():
            self.take(lines)

    def _parse(self, raw: bytes, end: int) -> dict[str, Any]:
        try:
            values = parse_json(raw)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("step", -1), int):
            log.warning("spool_line_skipped file=%s offset=%d reason=not-a-json-object", self.path, end - len(raw))
            return {}
        return values
