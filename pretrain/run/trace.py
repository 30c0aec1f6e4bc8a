"""The loss trace of a run: the proof that two runs were the same.

Rank 0 writes one JSON line per optimizer step to metrics.jsonl.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cardialign.data_shards.files import commit_file, parse_json, read_bytes
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import METRICS

log = logging.getLogger(__name__)


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl (or of the run directory that holds it) by step.

    A line that cannot be read, such as one cut short by a crash, is left out.
    """
    path = Path(path)
    if path.is_dir():
        path = path / METRICS
    return _parse(read_bytes(path))[0] if path.is_file() else []


def _parse(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Lines by step, and how many whole lines could not be read.

    NUL bytes around a line are what a power cut leaves of bytes that never reached the disk; some editors put a byte
    order mark before the first.
    """
    lines: dict[int, dict[str, Any]] = {}
    unreadable = 0
    *whole, last = content.split(b"\n")
    for number, raw in enumerate((*whole, last)):
        raw = raw.strip(b"\0 \t\r").removeprefix(codecs.BOM_UTF8 if number == 0 else b"")
        if not raw:
            continue
        try:
            line = parse_json(raw.decode("utf-8"))
            step = line["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            step = None
        if type(step) is int:
            lines[step] = line
        else:
            unreadable += number < len(whole)
    return [lines[step] for step in sorted(lines)], unreadable


def _gaps(lines: list[dict[str, Any]], upto: int) -> list[int]:
    return sorted(set(range(1, upto + 1)) - {int(line["step"]) for line in lines})


class TraceWriter:
    """Appends lines; opened for a resumed run, it first drops (by rename) what lies beyond the step it resumes from.

    Lines that cannot be read are named, and the file that held them is kept as `metrics.jsonl.unreadable`. A line that
    the disk does not take is kept in memory and written with the next one: `flush` says whether all are there.
    Raises OSError when the file cannot be opened.
    """

    def __init__(self, run_dir: Path, resumed_step: int) -> None:
        self.path = run_dir / METRICS
        fence.check(run_dir)
        content = read_bytes(self.path) if self.path.is_file() else b""
        found, unreadable = _parse(content)
        kept = [line for line in found if line["step"] <= resumed_step]
        if unreadable:
            copy = self.path.with_name(f"{METRICS}.unreadable")
            commit_file(copy, lambda temporary: shutil.copyfile(self.path, temporary))
            log.warning("trace=%s action=skip unreadable_lines=%d kept_in=%s", self.path, unreadable, copy.name)
        missing = _gaps(kept, resumed_step)
        if missing:
            log.warning("trace=%s missing_steps=%d first=%d", self.path, len(missing), missing[0])
        lines = "".join(json.dumps(line) + "\n" for line in kept)
        commit_file(self.path, lambda temporary: temporary.write_text(lines))
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._end = os.fstat(self._descriptor).st_size
        self._waiting = b""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the line of a step, or keep it for later when the disk does not take it."""
        fence.check(self.path.parent)
        self._waiting += (json.dumps({"step": step, **values}) + "\n").encode()
        problem = self._flush()
        if problem is not None:
            log.warning("trace=%s action=wait step=%d error=%s", self.path, step, problem)

    def flush(self) -> str | None:
        """Hand every line so far to the system; what it did not take, None when it has all. Who commits a checkpoint
        flushes the file to the disk first."""
        problem = self._flush()
        return None if problem is None else f"{METRICS}: {problem}"

    def _flush(self) -> OSError | None:
        """Write what waits, whole or not at all: half a line is taken back."""
        try:
            waiting = self._waiting
            while waiting:
                waiting = waiting[os.write(self._descriptor, waiting) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            return error
        self._end += len(self._waiting)
        self._waiting = b""
        return None

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
