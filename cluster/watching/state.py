"""How a run stands, from the files of its run directory alone: no Ray, no MLflow, no process of the run is asked.

Whoever looks may be on another machine, and may look while a file is being written: what is torn, missing or not of our
form is left out.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cardialign.cluster.watching.cause import Cause, cause_of
from cardialign.cluster.watching.decisions import Decision, read_decisions, starts_of
from cardialign.cluster.watching.utilisation import utilisation
from cardialign.data_shards.files import json_lines, open_regular, read_json
from cardialign.pretrain.run.figures import RankFigures, read_figures
from cardialign.pretrain.run.files import (
    ATTEMPTS,
    COMPUTE,
    CONFIG,
    DEATHS,
    DECISIONS,
    FAILURE,
    LOCK,
    METRICS,
    RESULT,
    STOP,
)

Word = Literal["empty", "starting", "running", "stalled", "interrupted", "stopped", "finished", "failed"]
OVER: tuple[Word, ...] = ("finished", "failed", "stopped", "interrupted")
"""What a run is called when nothing more comes of it by itself."""
TAIL_BYTES = 1 << 18
"""What is read of the end of a spool: some hundred steps."""
STILL_SECONDS, STILL_STEPS, STILL_PAUSES = 60.0, 10.0, 3.0
"""A run moves while its last step is no older than so many seconds, or so many long (p99) steps and pauses."""
UNKNOWN = "the command was given again, or nothing was left behind"
"""Cause of a restart that nobody has noted."""


@dataclass(frozen=True)
class CheckpointState:
    """The newest committed checkpoint. age_seconds: since it was committed, or since the start (step 0).

    pause_seconds: for which the last one held up the steps; commit_seconds: until it was committed behind them, None
    where the step waits for it; every_seconds: how far apart they are planned, at the present pace.
    """

    step: int = 0
    age_seconds: float | None = None
    pause_seconds: float | None = None
    every_seconds: float | None = None
    commit_seconds: float | None = None


@dataclass(frozen=True)
class Restart:
    """A worker group that came after another one: when (Unix time), and what ended the one before."""

    time: float | None
    cause: str


@dataclass(frozen=True)
class RunState:
    """One run as its directory shows it. What is not known is None (or empty).

    state            "empty" (no run), "starting" (no step so far), "running", "stalled" (the last step is too old),
                     "interrupted" (too old, and no driver holds the run), "stopped" (at a checkpoint, to be continued),
                     "finished", "failed".
    step, steps      done and planned. eta_seconds: to the last step at the present pace, pauses included.
    data_wait        means of a step of the rank that waits longest: "queue" (it stood), "read" and "decode" (of the
                     threads), in seconds, and "share" of the run's time.
    slowest_rank     with the most work of its own: "rank" and "host". slowest_shard: whose reads take longest.
    last_step_age_seconds, moves   how old the last step is, and whether that is no reason to worry.
    failure          "type", "problem", "remedy" and "rank" of what ended the run.
    decisions        to go on after a death, with how many workers, or to end; oldest first.
    collapse_below   effective rank below which the run ends itself.
    cause            why it is slow; ranks: the figures behind it.
    mfu              share of the peak of its devices, where that is known (`utilisation`).
    """

    name: str
    state: Word
    step: int = 0
    steps: int | None = None
    eta_seconds: float | None = None
    loss: float | None = None
    records_per_second: float | None = None
    data_wait: dict[str, float] = field(default_factory=dict)
    slowest_rank: dict[str, Any] | None = None
    slowest_shard: str | None = None
    checkpoint: CheckpointState = CheckpointState()
    restarts: tuple[Restart, ...] = ()
    decisions: tuple[Decision, ...] = ()
    effective_negatives: float | None = None
    effective_rank: float | None = None
    last_step_age_seconds: float | None = None
    moves: bool = False
    stop_asked: bool = False
    failure: dict[str, Any] | None = None
    collapse_below: float | None = None
    cause: Cause | None = None
    ranks: tuple[RankFigures, ...] = ()
    mfu: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_state(run_dir: Path, now: float | None = None, steps: int | None = None) -> RunState:
    """The state of the run in `run_dir` at `now` (Unix time; default: this moment). Raises nothing for odd contents.

    steps: that the run has in all, where the caller knows it.
    """
    run_dir, now = Path(run_dir), time.time() if now is None else now
    config, result = read_json(run_dir / CONFIG), read_json(run_dir / RESULT)
    lines, failure = list(spool_end(run_dir / METRICS)), read_json(run_dir / FAILURE)
    ranks = tuple(read_figures(run_dir))
    starts, decisions = _starts(run_dir), tuple(read_decisions(run_dir))
    step = int(lines[-1]["step"]) if lines else 0
    steps = steps or _steps(config, result, ranks)
    pace = _pace(ranks, lines, config)
    rate = _rate(ranks, lines, pace)
    written = _age(run_dir / METRICS, now) if lines else None
    moved = written if lines else _age(run_dir / CONFIG, now)
    moves = moved is not None and moved <= _patience(ranks)
    state = _word(_Signs(config is not None, result, failure, step, steps, moves, (run_dir / LOCK).exists()))
    over = state in OVER
    return RunState(
        name=str((config or {}).get("name", run_dir.name)),
        state=state,
        step=step,
        steps=steps,
        eta_seconds=None if pace is None or steps is None or over else max(0, steps - step) * pace,
        loss=_last(lines, "loss"),
        records_per_second=rate,
        data_wait=_data_wait(ranks),
        slowest_rank=_slowest(ranks),
        slowest_shard=max(ranks, key=lambda rank: rank.shard_seconds).shard or None if ranks else None,
        checkpoint=_checkpoint(run_dir, config, ranks, starts, pace, now),
        restarts=_restarts(run_dir, starts),
        decisions=decisions,
        effective_negatives=_last(lines, "effective_negatives"),
        effective_rank=_last(lines, "effective_rank"),
        last_step_age_seconds=written,
        moves=moves and state == "running",
        stop_asked=(run_dir / STOP).exists() and not over,
        failure=None if failure is None else {key: failure.get(key) for key in ("type", "problem", "remedy", "rank")},
        collapse_below=_collapse_below(config),
        cause=cause_of(ranks),
        ranks=ranks,
        mfu=utilisation(read_json(run_dir / COMPUTE), ranks, rate),
    )


def spool_end(path: Path) -> Iterator[dict[str, Any]]:
    """The last lines of a spool with a step, oldest first; a line that is torn is left out."""
    for values in last_lines(path):
        if isinstance(values.get("step"), int) and not isinstance(values["step"], bool):
            yield values


def last_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects among the lines at the end of a file, oldest first; nothing of one that cannot be read."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES))
            content = file.read()
    except OSError:
        return
    whole = content.split(b"\n")
    yield from json_lines(whole[1:] if size > TAIL_BYTES else whole)


def _number(value: Any) -> float | None:
    try:
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return None
    return float(value) if usable else None


def _last(lines: list[dict[str, Any]], key: str) -> float | None:
    return next((found for line in reversed(lines) if (found := _number(line.get(key))) is not None), None)


def _section(config: dict[str, Any] | None, name: str) -> dict[str, Any]:
    section = (config or {}).get(name)
    return section if isinstance(section, dict) else {}


def _steps(config: dict[str, Any] | None, result: dict[str, Any] | None, ranks: tuple[RankFigures, ...]) -> int | None:
    named = [rank.steps for rank in ranks]
    named += [(result or {}).get("total_steps"), _section(config, "training").get("steps")]  # type: ignore[list-item]
    return next((int(steps) for steps in named if _number(steps) is not None and steps > 0), None)


def _pace(ranks: tuple[RankFigures, ...], lines: list[dict[str, Any]], config: dict[str, Any] | None) -> float | None:
    """Seconds per step, pauses for checkpoints spread over all steps."""
    means = [rank.window_seconds / rank.window_steps for rank in ranks if rank.window_steps]
    if means:
        pause = max(rank.pause / rank.pause_interval if rank.pause_interval > 0 else 0.0 for rank in ranks)
        return max(means) / max(1e-3, 1 - pause)
    rate, batch = _last(lines, "records_per_second"), _number(_section(config, "training").get("global_batch"))
    return batch / rate if rate and batch else None


def _rate(ranks: tuple[RankFigures, ...], lines: list[dict[str, Any]], pace: float | None) -> float | None:
    if ranks and pace:
        return ranks[0].global_batch / pace
    return _last(lines, "records_per_second")


def _data_wait(ranks: tuple[RankFigures, ...]) -> dict[str, float]:
    seen = [rank for rank in ranks if rank.window_steps]
    if not seen:
        return {}
    longest = max(seen, key=lambda rank: rank.data / rank.window_steps)
    found = {"queue": longest.data, "read": longest.read, "decode": longest.decode}
    cause = cause_of(ranks)
    share = {} if cause is None else {"share": cause.shares["data"]}
    return {**{name: seconds / longest.window_steps for name, seconds in found.items()}, **share}


def _slowest(ranks: tuple[RankFigures, ...]) -> dict[str, Any] | None:
    seen = [rank for rank in ranks if rank.window_steps]
    if not seen:
        return None
    slowest = max(seen, key=lambda rank: rank.own / rank.window_steps)
    return {"rank": slowest.rank, "host": slowest.host}


def _patience(ranks: tuple[RankFigures, ...]) -> float:
    longest = max((rank.p99 for rank in ranks), default=0.0)
    return max(STILL_SECONDS, STILL_STEPS * longest + STILL_PAUSES * max((rank.pause for rank in ranks), default=0.0))


def _age(path: Path, now: float) -> float | None:
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return None


class _Signs(NamedTuple):
    """What the word of a run is told by. moves: something has come lately; driven: a driver holds the run."""

    there: bool
    result: dict[str, Any] | None
    failure: dict[str, Any] | None
    step: int
    steps: int | None
    moves: bool
    driven: bool


def _word(signs: _Signs) -> Word:
    if signs.failure is not None:
        return "failed"
    if signs.result is not None:
        return "stopped" if signs.result.get("stopped") else "finished"
    if signs.step and signs.steps is not None and signs.step >= signs.steps:
        return "finished"  # a run without Ray leaves no result
    if not (signs.there or signs.step):
        return "empty"
    if not (signs.moves or signs.driven):
        return "interrupted"
    if not signs.step:
        return "starting"
    return "running" if signs.moves else "stalled"


def _starts(run_dir: Path) -> list[float | None]:
    """When each worker group began, oldest first."""
    return [_number(values.get("time")) for values in last_lines(run_dir / ATTEMPTS)]


def _restarts(run_dir: Path, starts: list[float | None]) -> tuple[Restart, ...]:
    noted = list(last_lines(run_dir / DEATHS))
    noted += [each for each in last_lines(run_dir / DECISIONS) if each.get("kind") != "stop"]  # these say more
    found, first = [], max(1, starts_of(run_dir) - len(starts) + 1)
    for number, (before, began) in enumerate(pairwise(starts), start=first):
        between = [str(each.get("cause", "")) for each in noted if _ended(each, number, before, began)]
        found.append(Restart(began, between[-1] if between else UNKNOWN))
    return tuple(found)


def _ended(noted: dict[str, Any], number: int, before: float | None, began: float | None) -> bool:
    """Whether a note is of the so many-th worker group. Those of earlier releases say it by their time alone."""
    if _number(noted.get("starts")) is not None:
        return bool(noted["starts"] == number)
    at = _number(noted.get("time"))
    return at is not None and before is not None and began is not None and before <= at <= began


def _checkpoint(
    run_dir: Path, config: dict[str, Any] | None, ranks: tuple[RankFigures, ...], starts: list[float | None],
    pace: float | None, now: float,
) -> CheckpointState:  # fmt: skip
    from cardialign.pretrain.training.checkpoints.files import CheckpointError, committed, read_manifest

    step, created = 0, next((began for began in reversed(starts) if began is not None), None)
    try:
        newest = max(committed(run_dir), default=None)
    except OSError:
        newest = None
    if newest is not None:
        step = newest[0]
        try:
            created = datetime.fromisoformat(str(read_manifest(newest[1]).get("created"))).timestamp()
        except (CheckpointError, OSError, ValueError):
            age = _age(newest[1], now)
            created = None if age is None else now - age
    pause = next((rank.pause for rank in ranks if rank.pause > 0), None)
    commit = max((rank.commit for rank in ranks if rank.rank == 0), default=0.0) or None
    every = _number(_section(config, "training").get("checkpoint_every"))
    age = None if created is None else max(0.0, now - created)
    return CheckpointState(step, age, pause, every * pace if every and pace else None, commit)


def _collapse_below(config: dict[str, Any] | None) -> float | None:
    collapse = _section(config, "collapse")
    return _number(collapse.get("min_rank")) if collapse.get("enabled") else None
