"""Where the time of each rank goes, as a note in the run directory that its rank renews every few seconds.

Who wants to know why a run is slow reads the notes of all ranks: no rank knows what the others wait for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cardialign.data_shards.files import commit_file, read_json
from cardialign.pretrain.run import fence
from cardialign.pretrain.run.files import FIGURES

RENEWED_SECONDS = 5.0
"""A rank writes its note at most this often."""


@dataclass(frozen=True)
class RankFigures:
    """One rank's time. All times are in seconds.

    group, time        which worker group wrote it, and when (the host's clock).
    step, steps        last finished step, and how many the run has.
    device             the kind of the accelerator, "cpu" without one.
    window_steps       the newest steps (128 at most; the first of a start is left out), to which the following refer:
    window_seconds     their time without pauses for checkpoints; it is the sum of the next four.
    data               standing and waiting for the next batch.
    agree              in the exchange before each step, in which a rank waits for those whose batch is late.
    exchange           in all other collectives.
    own                the rank's own work: forward, loss, backward, update, and what the loop does beside them.
    p50, p99           seconds of a step.
    read, decode       of the background threads, which cost nothing while `data` is small.
    reads              records read.
    shard, shard_seconds, shard_reads   the shard that took longest to read from.
    pause, pause_interval   the last pause for a checkpoint, and from the end of the one before it (or the start) to its
                       end; 0 before the first.
    commit             from the step of the last checkpoint until it was committed (on other ranks than 0: until their
                       files were written), where it was written behind the steps; else 0.
    totals             since the start of the process: steps, seconds, data, read, decode, exchange (agree included),
                       own, checkpoint.
    """

    rank: int
    world_size: int
    host: str
    group: str
    time: float
    step: int
    steps: int
    global_batch: int
    device: str = "cpu"
    window_steps: int = 0
    window_seconds: float = 0.0
    data: float = 0.0
    agree: float = 0.0
    exchange: float = 0.0
    own: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    read: float = 0.0
    decode: float = 0.0
    reads: int = 0
    shard: str = ""
    shard_seconds: float = 0.0
    shard_reads: int = 0
    pause: float = 0.0
    pause_interval: float = 0.0
    commit: float = 0.0
    totals: dict[str, float] = field(default_factory=dict)


def _note(run_dir: Path, rank: int) -> Path:
    return run_dir / FIGURES / f"rank-{rank}.json"


def write_figures(run_dir: Path, figures: RankFigures) -> None:
    """Replace the rank's note. A disk that does not take it, or a successor in the run, is no reason to stop."""
    if fence.fenced_out(run_dir):
        return
    note = _note(run_dir, figures.rank)
    with contextlib.suppress(OSError):
        note.parent.mkdir(exist_ok=True)
        text = json.dumps(asdict(figures))
        commit_file(note, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=False)


def read_figures(run_dir: Path) -> list[RankFigures]:
    """The notes of the newest worker group by rank; one that is torn, or not of our form, is left out."""
    found = [_parsed(read_json(path)) for path in (Path(run_dir) / FIGURES).glob("rank-*.json")]
    notes = [note for note in found if note is not None]
    group = max(notes, key=lambda note: note.time).group if notes else ""
    return sorted((note for note in notes if note.group == group), key=lambda note: note.rank)


def _parsed(values: Mapping[str, Any] | None) -> RankFigures | None:
    """None for what is not of our form. Another release may have written more, or less of what has a default."""
    if values is None:
        return None
    given: dict[str, Any] = {}
    for entry in dataclasses.fields(RankFigures):
        value = values.get(entry.name, entry.default)
        if entry.name == "totals":
            totals = values.get("totals")
            value = {k: float(v) for k, v in totals.items() if _is(v, "float")} if isinstance(totals, dict) else {}
        elif not _is(value, str(entry.type)):
            return None
        given[entry.name] = float(value) if entry.type == "float" else value
    return RankFigures(**given)


def _is(value: object, kind: str) -> bool:
    if kind == "str":
        return isinstance(value, str)
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
    return whole or (kind == "float" and isinstance(value, float) and 0.0 <= value < float("inf"))
