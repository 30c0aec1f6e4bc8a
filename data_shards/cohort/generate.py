"""`make_cohort`: a virtual patient cohort on disk, in the layout of a real data set, with the truth beside it.

The folder is written under a name that says it is unfinished and renamed when complete. Everything follows from the
seed: each patient, visit and finding has its own random stream, so neither the number of workers nor the order of work
changes a byte.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
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
from cardialign.data_shards.cohort.layouts.paediatric import Lifespan, Paediatric
from cardialign.data_shards.cohort.layouts.ptb_xl import PtbXl
from cardialign.data_shards.cohort.patients import PREVALENCES, Patient, plan_cohort
from cardialign.data_shards.cohort.synthesis import record_visit
from cardialign.data_shards.cpus import usable_cpus
from cardialign.data_shards.errors import DataError, UsageError, UserError

GENERATOR_VERSION = 1
"""Raised whenever the same seed gives other bytes."""
LAYOUTS: dict[str, type[Layout]] = {
    "mimic-iv-ecg": MimicIvEcg,
    "ptb-xl": PtbXl,
    "paediatric": Paediatric,
    "lifespan": Lifespan,
}

_UNFINISHED = "COHORT-UNFINISHED"
_PATIENTS_PER_TASK = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cohort:
    """What is to be made; every byte follows from it.

    records: in total, None = about 2.4 per patient. sampling_rate in Hz. findings: only these codes of the table, None
    = all; who can have none of them is normal. prevalence: "balanced" (every finding about equally often) or
    "clinical".
    """

    patients: int
    records: int | None = None
    layout: str = "mimic-iv-ecg"
    seed: int = 0
    sampling_rate: int = 500
    findings: Collection[str] | None = None
    prevalence: str = "balanced"

    @property
    def codes(self) -> tuple[str, ...]:
        """The findings to be dealt, in the order of the table."""
        return tuple(code for code in FINDINGS if self.findings is None or code in self.findings)

    def problems(self) -> list[str]:
        """Everything that is wrong with it, in words."""
        wrong = []
        if self.patients < 1:
            wrong.append(f"patients must be at least 1, got {self.patients}")
        if self.records is not None and self.records < self.patients:
            wrong.append(
                f"records ({self.records}) must be at least patients ({self.patients}): everyone has a recording"
            )
        if self.layout not in LAYOUTS:
            wrong.append(f"unknown layout {self.layout!r}, known are {', '.join(LAYOUTS)}")
        if self.seed < 0:
            wrong.append(f"seed must not be negative, got {self.seed}")
        if self.layout == "ptb-xl" and self.sampling_rate != 500:
            wrong.append("the ptb-xl layout holds 500 and 100 Hz side by side: sampling_rate must stay 500")
        if not 100 <= self.sampling_rate <= 2000:
            wrong.append(f"sampling_rate must be between 100 and 2000 Hz, got {self.sampling_rate}")
        if self.prevalence not in PREVALENCES:
            wrong.append(f"unknown prevalence {self.prevalence!r}, known are {', '.join(PREVALENCES)}")
        unknown = sorted(set(self.findings or ()) - set(FINDINGS))
        if unknown or not self.codes:
            wrong.append(f"unknown findings {', '.join(unknown) or '(none given)'}; known are {', '.join(FINDINGS)}")
        return wrong


@dataclass(frozen=True)
class CohortSummary:
    """What was made. `findings`: code -> number of records that hold it."""

    records: int
    patients: int
    findings: dict[str, int]
    seconds: float
    path: Path


def make_cohort(
    out: Path | str, cohort: Cohort, *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> CohortSummary:
    """Write a cohort to the new folder `out`.

    workers: processes, 0 for one per core. `progress(done, total)` is called in patients. Raises UsageError for options
    that make no sense, UserError where `out` exists, DataError on disk trouble.
    """
    started = time.monotonic()
    out = Path(out)
    wrong = cohort.problems()
    if workers < 0:
        wrong.append(f"workers must not be negative (0 takes every core), got {workers}")
    if wrong:
        raise UsageError("; ".join(wrong), "correct the options named above")
    if out.exists():
        raise UserError(f"{out} exists already", "choose another folder, or remove this one first")
    patients = plan_cohort(cohort.patients, cohort.records, cohort.layout, cohort.seed, cohort.prevalence, cohort.codes)
    unfinished = out.with_name(out.name + ".unfinished")
    _clear(unfinished)
    try:
        unfinished.mkdir(parents=True)
        (unfinished / _UNFINISHED).write_text(
            "A cohort that was not finished. Safe to remove; making the cohort again removes it.\n"
        )
        rows = _write_patients(unfinished, patients, cohort, workers or usable_cpus(), progress)
        counts = _write_tables(unfinished, LAYOUTS[cohort.layout](), rows)
        total = sum(len(patient.visits) for patient in patients)
        _write_summary(unfinished / "cohort.json", cohort, total, counts)
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
        "cohort made path=%s layout=%s records=%d patients=%d seconds=%.1f",
        out,
        cohort.layout,
        total,
        cohort.patients,
        seconds,
    )
    return CohortSummary(total, cohort.patients, counts, seconds, out)


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


@dataclass(frozen=True)
class _Task:
    """Some patients of a cohort, to be written below `root`."""

    root: Path
    patients: list[Patient]
    cohort: Cohort


def _write_patients(
    root: Path, plan: list[Patient], cohort: Cohort, workers: int, progress: Callable[[int, int], None] | None
) -> Rows:
    """All recordings; the rows of all tables in the order of the plan."""
    tasks = [_Task(root, plan[i : i + _PATIENTS_PER_TASK], cohort) for i in range(0, len(plan), _PATIENTS_PER_TASK)]
    rows: Rows = {}
    done = 0
    for task, part in zip(tasks, _run(tasks, workers), strict=True):
        for table, lines in part.items():
            rows.setdefault(table, []).extend(lines)
        done += len(task.patients)
        if progress is not None:
            progress(done, len(plan))
    return rows


def _run(tasks: list[_Task], workers: int) -> Iterator[Rows]:
    if workers == 1 or len(tasks) == 1:
        yield from map(_write_some, tasks)
        return
    # Spawned, not forked: the caller may already run threads (torch, Ray), and a fork would copy their locks.
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_write_some, tasks)


def _write_some(task: _Task) -> Rows:
    """Write the recordings of some patients and return the rows they add to the tables. Runs in a worker."""
    layout, seed, rate = LAYOUTS[task.cohort.layout](), task.cohort.seed, task.cohort.sampling_rate
    rows: Rows = {"truth.csv": []}
    for patient in task.patients:
        parts = [layout.patient_rows(patient)]
        for visit in patient.visits:
            seconds = layout.seconds(patient, visit, seed)
            recording = record_visit(patient, visit, seed, seconds, rate, layout.gain)
            parts.append(layout.write_record(task.root, patient, visit, recording, seed))
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


def _write_summary(path: Path, cohort: Cohort, records: int, counts: dict[str, int]) -> None:
    summary = {
        "generator_version": GENERATOR_VERSION,
        "layout": cohort.layout,
        "seed": cohort.seed,
        "sampling_rate": cohort.sampling_rate,
        "prevalence": cohort.prevalence,
        "findings": {code: FINDINGS[code].name for code in cohort.codes},
        "patients": cohort.patients,
        "records": records,
        "records_per_finding": counts,
    }
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
