"""The linear-probe table: every system on the same records, resamples and parts of the training records.

Legend: n records, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.evaluation.probing.linear_probe import ProbeFit, neighbours, probe
from cardialign.pretrain.evaluation.probing.systems import System
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
from cardialign.pretrain.evaluation.result import plain
from cardialign.pretrain.evaluation.scoring import ClassTable, Estimate, class_auroc, score_classes, usable_classes

log = logging.getLogger(__name__)

READERS: dict[str, Callable[..., ProbeFit]] = {"linear probe": probe, "nearest neighbours": neighbours}


@dataclass(frozen=True)
class ProbeOptions:
    """shares of the training records, 1 = all; style and seeds as in `subsets.subset`; bootstrap: resamples."""

    shares: tuple[float, ...] = (1.0,)
    style: str = "random"
    seeds: int = 5
    bootstrap: int = 1000
    neighbours: bool = True


@dataclass(frozen=True)
class Row:
    """One system, read in one way, at one share: macro AUROC per seed; with all records the interval as well."""

    system: str
    reader: str
    share: float
    macro: float
    spread: float | None
    fits: list[dict[str, Any]]
    interval: tuple[float, float] | None = None
    less_encoder: Estimate | None = None
    classes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ProbeResult:
    """`to_dict` is everything, `table` what a reader of a terminal wants."""

    task: dict[str, Any]
    rows: list[Row]
    left_out: list[dict[str, str]]

    def to_dict(self) -> dict[str, Any]:
        return plain({"task": self.task, "rows": [asdict(row) for row in self.rows], "left_out": self.left_out})

    def table(self) -> str:
        shares = sorted({row.share for row in self.rows})
        head = ["system", "read by", *(f"{100 * share:g} %" for share in shares), "95 % interval", "less the encoder"]
        lines = [head]
        for key in dict.fromkeys((row.system, row.reader) for row in self.rows):
            of = {row.share: row for row in self.rows if (row.system, row.reader) == key}
            whole = of.get(1.0)
            cells = [_figure(of[share]) if share in of else "" for share in shares]
            limits = whole.interval if whole is not None else None
            difference = whole.less_encoder if whole is not None else None
            cells.append("" if limits is None else f"{limits[0]:.3f}-{limits[1]:.3f}")
            cells.append(
                ""
                if difference is None
                else f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
            )
            lines.append([*key, *cells])
        widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
        title = f"{self.task['name']}: macro AUROC over {self.task['classes']} classes, {self.task['records']}"
        rows = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        notes = [f"left out, {each['reason']}: {each['code']}" for each in self.left_out]
        if "no_untrained_floor" in self.task:
            notes.append(f"no untrained encoder beside it: {self.task['no_untrained_floor']}")
        shared = self.task["test_patients_in_training"]
        if shared:
            notes.append(f"{shared} patients of the test records are in training too: no figure of new patients")
        return "\n".join([title, *rows, *notes])


def _figure(row: Row) -> str:
    return f"{row.macro:.3f}" if row.spread is None else f"{row.macro:.3f} +- {row.spread:.3f}"


def probe_table(task: ProbeTask, systems: Sequence[System], options: ProbeOptions) -> ProbeResult:
    """Every system at every share.

    Raises UserError when no class of the test records can be scored, or none can be learnt and chosen by.
    """
    truth = task.truth[task.parts.test]
    usable, reasons = usable_classes(truth)
    if not usable.size:
        raise UserError(
            f"{task.name}: no class has both positives and negatives among {len(truth)} test records",
            "score more records or other folds",
        )
    readers = READERS if options.neighbours else {"linear probe": probe}
    rows, whole = [], {}
    for system in systems:
        for reader, fit in readers.items():
            for share in options.shares:
                seeds = 1 if share == 1 or options.style == "published-42" else options.seeds
                fits = [_fit(fit, system, task, share, options.style, seed) for seed in range(seeds)]
                macros = [float(class_auroc(each.scores[:, usable], truth[:, usable]).mean()) for each in fits]
                log.info("probe system=%s reader=%s share=%g macro=%.4f", system.name, reader, share, np.mean(macros))
                rows.append(_row(system, reader, share, fits, macros))
                if share == 1:
                    whole[system.name, reader] = fits[0].scores[:, usable]
    names = [task.names[c] for c in usable]
    if whole:
        patients = task.patients[task.parts.test]
        tables = score_classes(
            list(whole.values()), truth[:, usable], patients, names, resamples=options.bootstrap, seed=0
        )
        rows = _with_intervals(rows, dict(zip(whole, tables, strict=True)))
    left_out = [{"code": task.names[c][0], "reason": why} for c, why in reasons.items()]
    records = ", ".join(f"{count} {part}" for part, count in task.about["records"].items())
    facts = {**task.about, "name": task.name, "classes": len(usable), "records": records}
    facts["systems"] = {each.name: {"features": each.features.shape[-1], "weights": each.digest} for each in systems}
    return ProbeResult(facts, rows, left_out)


def _fit(
    fit: Callable[..., ProbeFit], system: System, task: ProbeTask, share: float, style: str, seed: int
) -> ProbeFit:
    try:
        return fit(system.features, task.truth, task.parts, share, style, seed)
    except ValueError as error:
        raise UserError(
            f"{task.name}, {system.name} at {100 * share:g} % of the training records: {error}",
            "give a larger share, more folds or another task",
        ) from None


def _row(system: System, reader: str, share: float, fits: Sequence[ProbeFit], macros: Sequence[float]) -> Row:
    told = [
        {
            "seed": each.seed,
            "records": each.records,
            "choice": each.choice,
            "validation": each.validation,
            "macro": macro,
            "unseen": list(each.unseen),
        }
        for each, macro in zip(fits, macros, strict=True)
    ]
    spread = float(np.std(macros, ddof=1)) if len(macros) > 1 else None
    return Row(system.name, reader, share, float(np.mean(macros)), spread, told)


def _with_intervals(rows: list[Row], tables: dict[tuple[str, str], ClassTable]) -> list[Row]:
    out = []
    for row in rows:
        table = tables.get((row.system, row.reader)) if row.share == 1 else None
        if table is None:
            out.append(row)
            continue
        first = tables["encoder", row.reader]
        difference = None if table is first else table.less(first)[0]
        limits = (table.macro.low, table.macro.high)
        classes = [asdict(each) for each in table.classes]
        out.append(Row(row.system, row.reader, 1.0, row.macro, row.spread, row.fits, limits, difference, classes))
    return out
