"""How often the test records of a task were scored for one training run: written down beside the shard set.

FOLDER.features/test-openings.jsonl, one line per opening; where nothing can be written there, in CARDIALIGN_CACHE. Who
chooses among checkpoints or settings by what the test records say has trained on them: the count stands with each
figure.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.files import LARGEST_JSON, parse_json, read_text
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.features import places_beside

FILE = "test-openings.jsonl"


@dataclass(frozen=True)
class ScoredPart:
    """What is opened: the test rows int64 (n,) of a task, by name."""

    task: str
    shard_set: ShardSet
    rows: np.ndarray

    @property
    def key(self) -> str:
        content = self.shard_set.fingerprint.encode() + self.task.encode() + self.rows.astype("<i8").tobytes()
        return hashlib.sha256(content).hexdigest()[:32]


def open_test(part: ScoredPart, run: str, what: str, encoder: str | None = None) -> dict[str, Any]:
    """Write down that the test records are about to be scored for `run`, and say the how manieth time this is.

    run: as `UsableEncoder.training_run`, or words for what starts from random weights.

    `times` (None when it can be kept nowhere), `earlier`: when, by what and with which encoder before.
    """
    now = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "what": what, "encoder": encoder}
    line = json.dumps({"part": part.key, "task": part.task, "run": run, **now}) + "\n"
    folders = list(places_beside(part.shard_set))
    written = any(_append(folder, line) for folder in folders)
    found = [entry for folder in folders for entry in _read(folder, part.key, run)]
    earlier = found[:-1] if written else found
    times = len(earlier) + 1 if written else None
    return {"task": part.task, "run": run, "times": times, **now, "earlier": earlier}


def _append(folder: Path, line: str) -> bool:
    """A line of its own at once: two evaluations may write at the same time. False where it is not there whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # a full disk cut the line before off
            whole = ("\n" if torn else "").encode() + line.encode()
            return os.write(descriptor, whole) == len(whole)
        finally:
            os.close(descriptor)
    except OSError:
        return False


def _read(folder: Path, key: str, run: str) -> list[dict[str, Any]]:
    try:
        lines = read_text(folder / FILE, LARGEST_JSON).splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        try:
            values = parse_json(line)
        except ValueError:  # a line that a full disk cut off
            continue
        if isinstance(values, dict) and (values.get("part"), values.get("run")) == (key, run):
            found.append({name: values.get(name) for name in ("time", "what", "encoder")})
    return found
