"""The loss trace of a run: the proof that two runs were the same.

Rank 0 writes one JSON line per optimizer step to metrics.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cardialign.data_shards.files import commit_file
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import METRICS


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl (or of the run directory that holds it) by step.

    A line cut short by a crash is left out.
    """
    path = Path(path)
    if path.is_dir():
        path = path / METRICS
    lines: dict[int, dict[str, Any]] = {}
    if not path.is_file():
        return []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines[int(line["step"])] = line
    return [lines[step] for step in sorted(lines)]


class TraceWriter:
    """Appends lines; opened for a resumed run, it first drops (by rename) what lies beyond the step it resumes from."""

    def __init__(self, run_dir: Path, resumed_step: int) -> None:
        self.path = run_dir / METRICS
        kept = [line for line in read_trace(self.path) if line["step"] <= resumed_step]
        lines = "".join(json.dumps(line) + "\n" for line in kept)
        fence.check(run_dir)
        commit_file(self.path, lambda temporary: temporary.write_text(lines))
        self.stream = self.path.open("a")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        fence.check(self.path.parent)
        self.stream.write(json.dumps({"step": step, **values}) + "\n")
        self.stream.flush()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.close()
