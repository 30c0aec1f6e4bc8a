"""NaN beyond the budget for such steps: one step goes to a rank's own fault, the next to a record that is too large."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from cardialign.cluster.drills.command import own_environment
from cardialign.cluster.drills.drill import Drill
from cardialign.cluster.drills.ground import EVERY, STEPS, Ground, make_shards
from cardialign.cluster.drills.loop import Loop
from cardialign.cluster.drills.measures import require, set_at
from cardialign.cluster.drills.numbers.skipped import kept_batch
from cardialign.cluster.drills.outcome import BrokenError, Outcome, SkippedError
from cardialign.cluster.drills.traces import first_difference
from cardialign.cluster.runs.planned import Fault, plan_of, write_plan
from cardialign.data_shards.files import parse_json
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.sources.base import Entry, Source
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.run.files import LOCK
from cardialign.pretrain.run.trace import read_trace
from cardialign.pretrain.training.alarms import CollapseError
from cardialign.pretrain.training.checkpoints.condition import examine
from cardialign.pretrain.training.checkpoints.files import committed

SKIPPED = 3
"""The step that is left out; the odd record comes behind the first checkpoint, which knows of it."""
TRIES = 12
GAIN = 1e-25
"""Counts per mV: what is divided by it has no square in float32."""


class OneOdd(Source):
    """A source of which one record was stored with another gain."""

    def __init__(self, source: Source, key: str) -> None:
        self.source, self.key = source, key
        self.name, self.root, self.label_sets = source.name, source.root, source.label_sets

    @classmethod
    def options(cls) -> dict[str, str]:
        return {}

    def entries(self) -> Iterable[Entry]:
        return self.source.entries()

    def read(self, entry: Entry) -> EcgRecord:
        record = self.source.read(entry)
        if entry.key == self.key:
            record.gain[:] = GAIN
        return record

    def describe(self) -> dict[str, Any]:
        return self.source.describe()


def run(ground: Ground) -> Outcome:
    run_dir, outcome = ground.run_dir("nan-stops"), Outcome()
    config, key, bad = _one_odd_record(ground, run_dir)
    last, plan = (bad - 1) // EVERY * EVERY, plan_of(run_dir)
    write_plan(plan, (Fault("nan", SKIPPED - 1, rank=1),))
    ended = Loop(config, run_dir, world=2, plan=plan).wait()
    set_at(plan)
    require(
        set(ended.codes) == {CollapseError.exit_code}, f"the ranks ended with {ended.codes}, not together: {ended.said}"
    )
    require(f"step {bad}: " in ended.said and "replay" in ended.said, f"neither step nor way out: {ended.said}")
    require([int(line["step"]) for line in read_trace(run_dir)] == list(range(1, bad)), "the trace ends elsewhere")
    newest, path = max(committed(run_dir))
    require(newest == last and examine(path).condition == "verified", f"the last good checkpoint is that of {newest}")
    require(kept_batch(run_dir, SKIPPED)["skipped"] and not kept_batch(run_dir, bad)["skipped"], "not so noted")
    before = _content(run_dir)
    found = _replayed(run_dir, bad)
    require(found["same_batch"] is True and found["checkpoint"] == newest, f"another step was made again: {found}")
    require(found["first"] is not None, f"made again, the step is sound: {found}")
    odd_ones = [each["record"] for share in found["ranks"] for each in share["records"] if not each["features_finite"]]
    require(odd_ones == [key], f"the odd records are said to be {odd_ones}, not {key}")
    require(_content(run_dir) == before, "`replay` changed something in the run directory")
    trace = read_trace(run_dir)
    again = Loop(config, run_dir, world=2, plan=plan).wait()
    require(again.said == ended.said, f"given again, it ends otherwise: {again.said or again.codes}")
    outcome.difference = first_difference(read_trace(run_dir), trace) or ""
    outcome.equal, outcome.lost = not outcome.difference, bad - 1 - newest
    if outcome.difference:
        raise BrokenError(f"given again, the trace differs: {outcome.difference}", outcome)
    outcome.note = f"stopped before step {bad}, twice alike; `replay` finds the record in {found['first']['where']}"
    return outcome


def _one_odd_record(ground: Ground, run_dir: Path) -> tuple[RunConfig, str, int]:
    """A run on a set with one odd record, its key, and the step in which it first comes. The order of a set follows
    from what is in it."""
    from cardialign.pretrain.training.data import open_data

    whole, _, _ = open_data(ground.config())
    for number in range(TRIES):
        key = whole.key(ground.random.randrange(len(whole)))
        folder = run_dir.with_name(f"{run_dir.name}-odd-{number}")
        odd = make_shards(folder, changed=partial(OneOdd, key=key))
        config = ground.config(f"data.shards={odd}", "training.bad_steps=1")
        shards, _, order = open_data(config)
        first = (step for step in range(STEPS) if key in map(shards.key, map(int, order.batch(step))))
        if (step := next(first, 0)) > EVERY:
            return config, key, step + 1
    raise SkippedError(f"of {TRIES} odd records none comes behind the first checkpoint")


def _replayed(run_dir: Path, step: int) -> dict[str, Any]:
    """What `cardialign replay` says of the bad step."""
    words = [sys.executable, "-m", "cardialign", "replay", str(run_dir), str(step), "--json"]
    done = subprocess.run(words, env=own_environment(), capture_output=True, text=True, timeout=600)  # noqa: S603 - ours
    require(done.returncode == 0, f"`replay` ended with {done.returncode}: {done.stdout[-300:]} {done.stderr[-300:]}")
    with contextlib.suppress(IndexError, ValueError):
        return dict(parse_json(done.stdout.strip().splitlines()[-1]))
    raise BrokenError(f"`replay` says nothing of the step: {done.stdout[-300:]}")


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


DRILL = Drill(
    fault="NaN beyond the budget",
    promise="All ranks stop together before the bad update, with the last good checkpoint whole and the batch kept; "
    "`cardialign replay` makes the step again and names the record, and the same start ends alike.",
    run=run,
)
