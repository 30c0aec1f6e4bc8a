"""The linear-probe table: every system on the same records, resamples and parts of the training records.

Legend: n records, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.evaluation.ledger import opening_line, told, twice_notes
from cardialign.pretrain.evaluation.probing.attention import attention_probe
from cardialign.pretrain.evaluation.probing.linear_probe import ProbeFit, neighbours, probe
from cardialign.pretrain.evaluation.probing.systems import System
from cardialign.pretrain.evaluation.probing.tasks import ProbeTask
from cardialign.pretrain.evaluation.result import plain
from cardialign.pretrain.evaluation.scored import ScoredRecords
from cardialign.pretrain.evaluation.scoring import (
    FREQUENT,
    ClassTable,
    Estimate,
    class_auroc,
    decided_at,
    score_classes,
    usable_classes,
)

log = logging.getLogger(__name__)

Reader = Callable[..., ProbeFit]
Key = tuple[str, str]
"""System and reader."""
PROBED, FROM_SCRATCH = "linear probe", "training from scratch"
OF_ENCODER: Key = ("encoder", PROBED)


def readers_of(system: System, with_neighbours: bool) -> dict[str, Reader]:
    """How a system is read: name -> f(truth, parts, share, style, seed, decided)."""
    found: dict[str, Reader] = {PROBED: partial(probe, system.features)}
    if with_neighbours:
        found["nearest neighbours"] = partial(neighbours, system.features)
    if system.tokens is not None:
        found["attention probe"] = partial(attention_probe, system.tokens)
    return found


@dataclass(frozen=True)
class ProbeOptions:
    """shares of the training records, 1 = all; style and seeds as in `subsets.subset`; bootstrap: resamples.

    supervised: presets of `fine_tune` that are trained from scratch on each share, beside what is read from features.
    """

    shares: tuple[float, ...] = (1.0,)
    style: str = "random"
    seeds: int = 5
    bootstrap: int = 1000
    neighbours: bool = True
    supervised: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One system, read in one way, at one share.

    macro: mean over the seeds, spread: their standard deviation; interval: of that mean, over patients; less_encoder:
    paired; frequent: the macro of the classes with enough positives; classes: each with its interval.
    """

    system: str
    reader: str
    share: float
    macro: float
    spread: float | None
    fits: list[dict[str, Any]]
    interval: tuple[float | None, float | None] = (None, None)
    less_encoder: dict[str, float | None] | None = None
    frequent: dict[str, Any] = field(default_factory=dict)
    classes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ProbeResult:
    """`to_dict` is everything, `table` what a reader of a terminal wants.

    scored: by share, what each system, as (system, reader), made of every test record; no part of the JSON.
    """

    task: dict[str, Any]
    rows: list[Row]
    left_out: list[dict[str, str]]
    scored: dict[float, dict[Key, ScoredRecords]] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        return plain({"task": self.task, "rows": [asdict(row) for row in self.rows], "left_out": self.left_out})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProbeResult:
        """What `to_dict` gave, also after it was a file. Raises KeyError or TypeError for anything else."""
        rows = [Row(**{**row, "interval": tuple(row["interval"])}) for row in values["rows"]]
        return cls(values["task"], rows, values["left_out"])

    def tracked(self) -> list[dict[str, Any]]:
        """The encoder's linear probe at each share, with its ledger, in the words of `registry.log_evaluation`."""
        mine = [line for line in self.task.get("ledger", []) if line["figure"] in ("encoder", "every system")]
        return [
            {
                "share": row.share,
                "macro": row.macro,
                "low": row.interval[0],
                "high": row.interval[1],
                "classes": row.classes,
                "ledger": mine,
                "trained_on": self.task.get("trained_on"),
            }
            for row in self.rows
            if (row.system, row.reader) == OF_ENCODER
        ]

    def table(self) -> str:
        shares = sorted({row.share for row in self.rows})
        head = ["system", "read by", *(f"{100 * share:g} %" for share in shares)]
        lines = [[*head, f"less the encoder, {100 * shares[-1]:g} %"]]
        for key in dict.fromkeys((row.system, row.reader) for row in self.rows):
            of = {row.share: row for row in self.rows if (row.system, row.reader) == key}
            cells = [_figure(of[share]) if share in of else "" for share in shares]
            difference = of[shares[-1]].less_encoder if shares[-1] in of else None
            lines.append([*key, *cells, "" if difference is None else _difference(difference)])
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        title = f"{self.task['name']}: macro AUROC over {self.task['classes']} classes, {self.task['records']}"
        rows = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([title, *rows, *self.notes()])

    def notes(self) -> list[str]:
        """What stands under the figures: classes left out, patients on both sides, what was trained on before."""
        notes = left_out_notes(self.left_out) + left_open_notes(self.task)
        codes = [code for code, _ in self.task["scored"]]
        for share in sorted({row.share for row in self.rows}):
            never = {code for row in self.rows if row.share == share for fit in row.fits for code in fit["unseen"]}
            if named := [code for code in codes if code in never]:
                notes.append(f"at {100 * share:g} % not learnt with every seed, 0.5 then: {', '.join(named)}")
        notes += larger_notes(self.rows, self.task.get("training_records", 0))
        notes += few_notes(self.task)
        if "no_untrained_floor" in self.task:
            notes.append(f"no untrained encoder beside it: {self.task['no_untrained_floor']}")
        notes += shared_notes(self.task, "penalties are too weak")
        notes += [f"no figure at {100 * each['share']:g} %: {each['reason']}" for each in self.task.get("missing", [])]
        notes += told(self.task.get("ledger", []))
        if opening := self.task.get("test_opened"):
            notes.append(opening_line(opening))
        return notes


def left_out_notes(left_out: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for each reason, with the classes that it keeps out of the mean."""
    reasons = dict.fromkeys(each["reason"] for each in left_out)
    return [f"left out, {why}: {', '.join(e['code'] for e in left_out if e['reason'] == why)}" for why in reasons]


def class_facts(task: ProbeTask, usable: np.ndarray) -> dict[str, Any]:
    """Of the classes that are scored (places): `few`, with too few positives among the test records for a mean to lean
    on, and `not_judged`, by which nothing was chosen."""
    judged, _ = usable_classes(task.truth[task.parts.validation], task.decided_in(task.parts.validation))
    positives = task.positives_in(task.parts.test)
    few = {task.names[c][0]: int(positives[c]) for c in usable if positives[c] < FREQUENT}
    return {"few": few, "not_judged": [task.names[c][0] for c in usable if c not in judged]}


def larger_notes(rows: Sequence[Row], training: int) -> list[str]:
    """Lines on shares that are larger than they are called, by a record or more: `stratified` keeps one positive of
    every class, and one record is the least."""
    notes = []
    for share in sorted({row.share for row in rows}):
        counts = [fit["records"] for row in rows if row.share == share for fit in row.fits]
        if training and counts and max(counts) >= share * training + 1:
            least, most = min(counts), max(counts)
            told = f"{most}" if least == most else f"{least} to {most}"
            notes.append(
                f"at {100 * share:g} % learnt from {told} of {training} records, up to {100 * most / training:.2g} %: "
                "a positive of every class, or one record, is the least"
            )
    return notes


def few_notes(task: Mapping[str, Any]) -> list[str]:
    """Lines on what `class_facts` found."""
    notes = []
    if few := task.get("few"):
        counts = ", ".join(f"{code} ({count})" for code, count in few.items())
        notes.append(f"fewer than {FREQUENT} positives among the test records: {counts}")
    if unjudged := task.get("not_judged"):
        notes.append(f"nothing was chosen by them, for want of validation records: {', '.join(unjudged)}")
    return notes


def shared_notes(task: Mapping[str, Any], so: str) -> list[str]:
    """Lines on patients on both sides. so: what follows where it is the validation records'."""
    notes = []
    if shared := task.get("test_patients_in_training", 0):
        notes.append(f"{shared} patients of the test records are in training too: no figure of new patients")
    if shared := task.get("validation_patients_in_training", 0):
        notes.append(f"{shared} patients of the validation records are in training too: {so}")
    return notes + twice_notes(task.get("test_recordings_twice", 0))


def left_open_notes(task: Mapping[str, Any]) -> list[str]:
    """A line with the classes that some records leave open, and how many do."""
    counts = ", ".join(f"{code} ({count})" for code, count in task.get("left_open", {}).items())
    return [f"records whose codes leave a class open, neither learnt nor scored for it: {counts}"] if counts else []


def joined(results: Sequence[ProbeResult]) -> ProbeResult:
    """Results of one task at several shares as one, in the order of systems and readers."""
    first = results[0]
    order = list(dict.fromkeys((row.system, row.reader) for row in first.rows))
    rows = sorted((row for each in results for row in each.rows), key=lambda r: order.index((r.system, r.reader)))
    return ProbeResult(first.task, rows, first.left_out, {k: v for each in results for k, v in each.scored.items()})


def _figure(row: Row) -> str:
    spread = "" if row.spread is None else f" +- {row.spread:.3f}"
    low, high = row.interval
    return f"{row.macro:.3f}{spread}" + ("" if low is None else f" ({low:.3f}-{high:.3f})")


def _difference(found: Mapping[str, float | None]) -> str:
    limits = "" if found["low"] is None else f" ({found['low']:+z.3f} to {found['high']:+z.3f})"
    return f"{found['value']:+z.3f}{limits}"


def probe_table(
    task: ProbeTask,
    systems: Sequence[System],
    options: ProbeOptions,
    trained: Mapping[str, Reader] | None = None,
) -> ProbeResult:
    """Every system at every share, and those that are `trained` on the records of each, by name.

    Raises UserError when no class of the test records can be scored, or none can be learnt and chosen by.
    """
    truth = task.truth[task.parts.test]
    usable, reasons = usable_classes(truth, task.decided_in(task.parts.test))
    if not usable.size:
        raise UserError(
            f"{task.name}: no class has both positives and negatives among {len(truth)} test records",
            "score more records or other folds",
        )
    rows: list[Row] = []
    scored = {}
    for share in options.shares:
        found, scored[share] = _rows_at(share, task, systems, options, usable, trained or {})
        rows += found
    order = list(dict.fromkeys((row.system, row.reader) for row in rows))
    rows.sort(key=lambda row: order.index((row.system, row.reader)))
    left_out = [{"code": task.names[c][0], "reason": why} for c, why in reasons.items()]
    records = ", ".join(f"{count} {part}" for part, count in task.about["records"].items())
    facts = {**task.about, "name": task.name, "classes": len(usable), "records": records}
    facts["training_records"] = len(task.parts.train)
    facts["scored"] = [list(task.names[c]) for c in usable]
    facts |= class_facts(task, usable)
    facts["systems"] = {each.name: {"features": each.features.shape[-1], "weights": each.digest} for each in systems}
    return ProbeResult(facts, rows, left_out, scored)


def _rows_at(
    share: float,
    task: ProbeTask,
    systems: Sequence[System],
    options: ProbeOptions,
    usable: np.ndarray,
    trained: Mapping[str, Reader],
) -> tuple[list[Row], dict[Key, ScoredRecords]]:
    truth, decided = task.truth[task.parts.test][:, usable], decided_at(task.decided, task.parts.test, usable)
    seeds = 1 if share == 1 or options.style == "published-42" else options.seeds
    fits: dict[Key, list[ProbeFit]] = {}
    for system in systems:
        for reader, read in readers_of(system, options.neighbours).items():
            fits[system.name, reader] = [
                _fit(read, system.name, task, share, options.style, seed) for seed in range(seeds)
            ]
    for name, read in trained.items():
        fits[name, FROM_SCRATCH] = [_fit(read, name, task, share, options.style, seed) for seed in range(seeds)]
    scores = [np.stack([each.scores[:, usable] for each in of]) for of in fits.values()]
    names = [task.names[c] for c in usable]
    patients = task.patients[task.parts.test]
    made = score_classes(scores, truth, patients, names, resamples=options.bootstrap, seed=0, decided=decided)
    tables = dict(zip(fits, made, strict=True))
    rows = []
    for (system_name, reader), of in fits.items():
        table, of_encoder_by = tables[system_name, reader], PROBED if reader == FROM_SCRATCH else reader
        beside = tables.get((systems[0].name, of_encoder_by))
        less = None if system_name == systems[0].name or beside is None else table.less(beside)[0]
        macros = [float(class_auroc(each.scores[:, usable], truth, decided).mean()) for each in of]
        log.info("probe system=%s reader=%s share=%g macro=%.4f", system_name, reader, share, np.mean(macros))
        rows.append(_row(Row(system_name, reader, share, 0.0, None, []), of, macros, table, less, task))
    told = tuple((code, word) for code, word in names)
    kept = {key: ScoredRecords(of, truth, patients, told, decided) for key, of in zip(fits, scores, strict=True)}
    return rows, kept


def _fit(read: Reader, system: str, task: ProbeTask, share: float, style: str, seed: int) -> ProbeFit:
    try:
        return read(task.truth, task.parts, share, style, seed, task.decided)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"{task.name}, {system} at {100 * share:g} % of {len(task.parts.train)} training records: {error}",
            "give a larger share, more folds or another task",
        ) from None


def _row(
    bare: Row,
    fits: Sequence[ProbeFit],
    macros: Sequence[float],
    table: ClassTable,
    less: Estimate | None,
    task: ProbeTask,
) -> Row:
    told_fits = [
        {
            "seed": each.seed,
            "records": each.records,
            "choice": each.choice,
            "validation": each.validation,
            "macro": macro,
            "unseen": [task.names[c][0] for c in each.unseen],
        }
        for each, macro in zip(fits, macros, strict=True)
    ]
    values: dict[str, Any] = plain(
        {
            "interval": (table.macro.low, table.macro.high),
            "less_encoder": None if less is None else asdict(less),
            "frequent": asdict(table.frequent),
            "classes": [asdict(each) for each in table.classes],
        }
    )
    values["interval"] = tuple(values["interval"])
    spread = float(np.std(macros, ddof=1)) if len(macros) > 1 else None
    return replace(bare, macro=float(np.mean(macros)), spread=spread, fits=told_fits, **values)
