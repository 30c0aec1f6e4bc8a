"""`make_cohort`: a virtual patient cohort on disk, in the layout of a real data set, with the truth beside it.

The folder is written under a name that says it is unfinished and renamed when complete. Everything follows from the seed: each patient, visit and
finding has its own random stream, so neither the number of workers nor the order of work changes a byte.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from cardialign.data_shards.cohort.findings import FINDINGS
from cardialign.data_shards.cohort.layouts.base import Layout, Rows, write_table
from cardialign.data_shards.cohort.layouts.mimic_iv_ecg import MimicIvEcg
from cardialign.data_shards.cohort.layouts.paediatric import Paediatric
from cardialign.data_shards.cohort.layouts.ptb_xl import PtbXl
from cardialign.data_shards.cohort.patients import PREVALENCES, Patient, plan_cohort
from cardialign.data_shards.cohort.synthesis import record_visit
from cardialign.data_shards.errors import DataError, UsageError, UserError

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other bytes."""
LAYOUTS: dict[str, type[Layout]] = {"mimic-iv-ecg": MimicIvEcg, "ptb-xl": PtbXl, "paediatric": Paediatric}

_UNFINISHED = "COHORT-UNFINISHED"
_PATIENTS_PER_TASK = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CohortReport:
    """What was made. `findings`: code -> number of records that hold it."""

    records: int
    patients: int
    findings: dict[str, int]
    seconds: float
    path: Path


def make_cohort(
    out: Path | str,
    *,
    patients: int,
    records: int | None = None,
    layout: str = "mimic-iv-ecg",
    seed: int = 0,
    workers: int = 1,
    sampling_rate: int = 500,
    findings: Collection[str] | None = None,
    prevalence: str = "balanced",
    progress: Callable[[int, int], None] | None = None,
) -> CohortReport:
    """Write a cohort of `patients` with `records` in total (None: about 2.4 each) to the new folder `out`.

    `sampling_rate` in Hz; `workers` processes, 0 for one per core; `findings` restricts the table to these codes (who can have none of them is normal); `prevalence` "balanced" (every finding about equally often) or "clinical".
    `progress(done, total)` is called in patients. UsageError for options that make no sense, UserError where `out` exists, DataError on disk trouble.
    """
    started = time.monotonic()
    out = Path(out)
    codes = _check(patients, records, layout, seed, workers, sampling_rate, findings, prevalence)
    if out.exists():
        raise UserError(f"{out} exists already", "choose another folder, or remove this one first")
    workers = workers or _cores()
    plan = plan_cohort(patients, records, layout, seed, prevalence, codes)
    unfinished = out.with_name(out.name + ".unfinished")
    _clear(unfinished)
    try:
        unfinished.mkdir(parents=True)
        (unfinished / _UNFINISHED).write_text(
            "A cohort that was not finished. Safe to remove; making the cohort again removes it.\n"
        )
        rows = _write_patients(unfinished, plan, layout, seed, workers, sampling_rate, progress)
        counts = _write_tables(unfinished, LAYOUTS[layout](), rows)
        total = sum(len(p.visits) for p in plan)
        _write_summary(
            unfinished / "cohort.json", layout, seed, sampling_rate, prevalence, codes, patients, total, counts
        )
        (unfinished / _UNFINISHED).unlink()
        unfinished.rename(out)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died while making the cohort (killed, or out of memory?)", "run again with fewer workers"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot write the cohort to {out}: {error}", "free some space or choose another folder, then run again"
        ) from error
    seconds = time.monotonic() - started
    _log.info(
        "cohort made path=%s layout=%s records=%d patients=%d seconds=%.1f", out, layout, total, patients, seconds
    )
    return CohortReport(total, patients, counts, seconds, out)


def _check(
    patients: int,
    records: int | None,
    layout: str,
    seed: int,
    workers: int,
    sampling_rate: int,
    findings: Collection[str] | None,
    prevalence: str,
) -> tuple[str, ...]:
    """The codes to use, or a UsageError that lists everything wrong with the options."""
    wrong = []
    if patients < 1:
        wrong.append(f"patients must be at least 1, got {patients}")
    if records is not None and records < patients:
        wrong.append(f"records ({records}) must be at least patients ({patients}): everyone has a recording")
    if layout not in LAYOUTS:
        wrong.append(f"unknown layout {layout!r}, known are {', '.join(LAYOUTS)}")
    if seed < 0:
        wrong.append(f"seed must not be negative, got {seed}")
    if workers < 0:
        wrong.append(f"workers must not be negative (0 takes every core), got {workers}")
    if layout == "ptb-xl" and sampling_rate != 500:
        wrong.append("the ptb-xl layout holds 500 and 100 Hz side by side: sampling_rate must stay 500")
    if not 100 <= sampling_rate <= 2000:
        wrong.append(f"sampling_rate must be between 100 and 2000 Hz, got {sampling_rate}")
    if prevalence not in PREVALENCES:
        wrong.append(f"unknown prevalence {prevalence!r}, known are {', '.join(PREVALENCES)}")
    chosen = tuple(FINDINGS) if findings is None else tuple(c for c in FINDINGS if c in findings)
    unknown = sorted(set(findings or ()) - set(FINDINGS))
    if unknown or not chosen:
        wrong.append(f"unknown findings {', '.join(unknown) or '(none given)'}; known are {', '.join(FINDINGS)}")
    if wrong:
        raise UsageError("; ".join(wrong), "correct the options named above")
    return chosen


def _cores() -> int:
    """Cores this process may use; where the system cannot say, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _clear(unfinished: Path) -> None:
    """Remove what a killed run left; leave alone what no run of ours made."""
    if not unfinished.exists():
        return
    if not (unfinished / _UNFINISHED).exists():
        raise UserError(
            f"{unfinished} is in the way and is no unfinished cohort", "move it, or choose another output folder"
        )
    _log.info("unfinished cohort removed path=%s", unfinished)
    shutil.rmtree(unfinished)


def _write_patients(
    root: Path,
    plan: list[Patient],
    layout: str,
    seed: int,
    workers: int,
    sampling_rate: int,
    progress: Callable[[int, int], None] | None,
) -> Rows:
    """All recordings; the rows of all tables in the order of the plan."""
    tasks = [
        (root, plan[i : i + _PATIENTS_PER_TASK], layout, seed, sampling_rate)
        for i in range(0, len(plan), _PATIENTS_PER_TASK)
    ]
    rows: Rows = {}
    done = 0
    for task, part in zip(tasks, _run(tasks, workers), strict=True):
        for table, lines in part.items():
            rows.setdefault(table, []).extend(lines)
        done += len(task[1])
        if progress is not None:
            progress(done, len(plan))
    return rows


def _run(tasks: list[tuple[Path, list[Patient], str, int, int]], workers: int) -> Iterator[Rows]:
    if workers == 1 or len(tasks) == 1:
        yield from map(write_patients, tasks)
        return
    # Spawned, not forked: the caller may already run threads (torch, Ray), and a fork would copy their locks.
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write_patients, tasks)


def write_patients(task: tuple[Path, list[Patient], str, int, int]) -> Rows:
    """Write the recordings of some patients and return the rows they add to the tables. Runs in a worker."""
    root, patients, name, seed, sampling_rate = task
    layout = LAYOUTS[name]()
    rows: Rows = {"truth.csv": []}
    for patient in patients:
        parts = [layout.patient_rows(patient)]
        for visit in patient.visits:
            recording = record_visit(
                patient, visit, seed, layout.seconds(patient, visit, seed), sampling_rate, layout.gain
            )
            parts.append(layout.write_record(root, patient, visit, recording, seed))
            rows["truth.csv"] += [
                {layout.id_column: layout.record_id(visit), "label_set": "finding", "label": c} for c in visit.findings
            ]
        for part in parts:
            for table, lines in part.items():
                rows.setdefault(table, []).extend(lines)
    return rows


def _write_tables(root: Path, layout: Layout, rows: Rows) -> dict[str, int]:
    for table, columns in layout.tables.items():
        write_table(root / table, columns, rows.get(table, []))
    write_table(root / "truth.csv", (layout.id_column, "label_set", "label"), rows["truth.csv"])
    layout.write_extras(root)
    found = Counter(str(row["label"]) for row in rows["truth.csv"])
    return {code: found[code] for code in FINDINGS if found[code]}


def _write_summary(
    path: Path,
    layout: str,
    seed: int,
    sampling_rate: int,
    prevalence: str,
    codes: tuple[str, ...],
    patients: int,
    records: int,
    counts: dict[str, int],
) -> None:
    summary = {
        "generator_version": GENERATOR_VERSION,
        "layout": layout,
        "seed": seed,
        "sampling_rate": sampling_rate,
        "prevalence": prevalence,
        "findings": {code: FINDINGS[code].name for code in codes},
        "patients": patients,
        "records": records,
        "records_per_finding": counts,
    }
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
