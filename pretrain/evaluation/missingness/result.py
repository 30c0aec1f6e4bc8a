"""What is left of an encoder's figures when parts of the records are missing, with intervals by patient.

Several encoders of one recipe, of one seed each, count as one: a record's figure is the mean over them.
Legend: S seeds, n records, C classes, D random draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UserError
from cardialign.pretrain.evaluation.intervals import Sample, change_interval
from cardialign.pretrain.evaluation.missingness.cmrs import covered, preserved, separation
from cardialign.pretrain.evaluation.missingness.evaluate import MaskedScores, Scored
from cardialign.pretrain.evaluation.result import plain
from cardialign.pretrain.evaluation.scoring import (
    MIN_PATIENTS,
    Estimate,
    mean_over_records,
    score_classes,
    usable_classes,
)


@dataclass(frozen=True)
class Condition:
    """The figures of one mask. loss: AUROC of the whole records less that of the masked ones, paired."""

    kind: str
    mask: str
    units: int
    budget: int
    records: int
    cmrs: Estimate
    auroc: Estimate
    loss: Estimate


@dataclass(frozen=True)
class _Figures:
    """What figures are made of: kept (n,) of each record, NaN where not covered; AUROC masked and whole."""

    condition: Condition
    kept: np.ndarray
    masked: Sample
    whole: Sample


@dataclass(frozen=True)
class MissingnessResult:
    """covered: share of the records that CMRS is a mean over, of all seeds. gaps: random less adversarial, by kind, and
    less the primary evidence."""

    records: int
    patients: int
    covered: float
    whole: Estimate
    conditions: list[Condition]
    gaps: dict[str, dict[str, Estimate]]
    evidence_classes: list[str]
    seconds: float
    figures: list[_Figures]
    patients_of: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = plain(
            {
                "records": self.records,
                "patients": self.patients,
                "coverage": self.covered,
                "auroc": asdict(self.whole),
                "conditions": [asdict(each) for each in self.conditions],
                "gaps": {kind: {k: asdict(v) for k, v in each.items()} for kind, each in self.gaps.items()},
                "evidence_classes": self.evidence_classes,
                "patients_of_the_rarest_class": self.fewest(),
                "seconds": self.seconds,
            }
        )
        return told

    def fewest(self) -> int | None:
        """Patients of the rarest class that an AUROC here is made of."""
        counts = [int(each.whole.fewest.min()) for each in self.figures if each.whole.point.size]
        return min(counts, default=None)

    def table(self) -> str:
        head = ["missing", "chosen", "budget", "CMRS", "95 % interval", "AUROC", "lost", "95 % interval"]
        rows = [["nothing", "", "", "1.000", "", _number(self.whole.value), "", ""]]
        for c in self.conditions:
            budget = "as they are" if "evidence" in c.mask else "of each record's own"
            budget = f"{c.budget} of {c.units}" if c.budget else budget
            figures = [_number(c.cmrs.value), _interval(c.cmrs)]
            figures += [_number(c.auroc.value), _number(c.loss.value, sign=True), _interval(c.loss, sign=True)]
            rows.append([c.kind, c.mask, budget, *figures])
        widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
        rows = [head, ["-" * w for w in widths], *rows]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        for kind, gap in self.gaps.items():
            lines.append(f"gap of {kind}, random less worst: CMRS {_said(gap['cmrs'])}, AUROC {_said(gap['auroc'])}")
        lines.append(f"coverage {self.covered:.3f}: whole records whose own classes stand out from a blank record's")
        if self.evidence_classes:
            lines.append(f"evidence, AUROC and loss: of {', '.join(self.evidence_classes)} alone")
        few = self.fewest()
        if few is not None and few < MIN_PATIENTS:
            lines.append(
                f"intervals of AUROC are wide: the rarest class is had, or lacked, by {few} of the patients scored; "
                "score more records"
            )
        title = f"missingness: {self.records} records of {self.patients} patients"
        return "\n".join([title, *lines])


def _number(value: float, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}z.3f}" if math.isfinite(value) else "n/a"


def _interval(estimate: Estimate, sign: bool = False) -> str:
    if not math.isfinite(estimate.low):
        return "n/a"
    return f"{_number(estimate.low, sign)} to {_number(estimate.high, sign)}"


def _said(estimate: Estimate) -> str:
    return f"{_number(estimate.value, True)} ({_interval(estimate, True)})"


def result_of(seeds: Sequence[Scored], *, resamples: int, seed: int) -> MissingnessResult:
    """The figures of the encoders in `seeds`, scored on the same records under the same kinds of masks.

    Raises UserError when no class can be ranked.
    """
    task = seeds[0].task
    columns, _ = usable_classes(task.truth, task.decided)
    if not columns.size:
        raise UserError(
            f"no class of {task.prompts.name} has both positives and negatives among {len(task.rows)} records",
            "evaluate on more records",
        )
    how = _How(seeds, columns, resamples, seed)
    figures = [how.figures(k) for k in range(len(seeds[0].by_record))]
    everyone = how.inside.mean(axis=0)
    names = [f"{task.prompts.codes[c]}" for c in how.evident]
    table = score_classes(
        [np.stack([each.whole for each in seeds])[:, :, columns]],
        task.truth[:, columns],
        task.patients,
        [(task.prompts.codes[c], "") for c in columns],
        resamples=resamples,
        seed=seed,
        decided=how.decided(columns),
    )[0]
    gaps = {}
    found = {(f.condition.kind, f.condition.mask): f for f in figures}
    for (kind, mask), each in found.items():
        other = {"adversarial": "random", "evidence": "random as evidence"}.get(mask)
        if other is not None:
            name = kind if mask == "adversarial" else "the evidence"
            gaps[name] = how.apart(found[kind, other], each)
    return MissingnessResult(
        records=len(task.rows),
        patients=len(np.unique(task.patients)),
        covered=float(everyone.mean()),
        whole=table.macro,
        conditions=[each.condition for each in figures],
        gaps=gaps,
        evidence_classes=names,
        seconds=sum(each.seconds for each in seeds),
        figures=figures,
        patients_of=task.patients,
    )


class _How:
    """Scores of S encoders -> figures, over the same resamples of patients."""

    def __init__(self, seeds: Sequence[Scored], columns: np.ndarray, resamples: int, seed: int) -> None:
        self.seeds, self.columns, self.resamples, self.seed = seeds, columns, resamples, seed
        self.task = seeds[0].task
        truth, known = self.task.truth, self.task.decided
        self.whole = np.stack([separation(each.whole, truth, known) for each in seeds])  # (S, n)
        self.blank = np.stack([separation(np.broadcast_to(each.blank, truth.shape), truth, known) for each in seeds])
        self.inside = covered(self.whole, self.blank)
        by_class = seeds[0].by_class[0].scores[0]
        self.evident = np.array([c for c in columns if np.isfinite(by_class[:, c]).all()], dtype=np.int64)

    def decided(self, columns: np.ndarray) -> np.ndarray | None:
        return None if self.task.decided is None else self.task.decided[:, columns]

    def kept(self, masked: Sequence[MaskedScores]) -> np.ndarray:
        """(n,): what is preserved of each record, mean over draws, then over the seeds that cover it; NaN for none."""
        each = []
        for s, of in enumerate(masked):
            delta = separation(of.scores, self.task.truth, self.task.decided)  # (D, n)
            each.append(preserved(delta, self.whole[s], self.blank[s]).mean(axis=0))
        values = np.array(each)
        there = np.isfinite(values)
        total = np.where(there, values, 0.0).sum(axis=0)
        return np.where(there.any(axis=0), total / there.sum(axis=0).clip(1), np.nan)

    def figures(self, k: int) -> _Figures:
        masked = [each.by_record[k] for each in self.seeds]
        name, columns, ranked = masked[0].mask, self.columns, masked
        if "evidence" in name:
            at = [each.mask for each in self.seeds[0].by_class].index(name)
            columns, ranked = self.evident, [each.by_class[at] for each in self.seeds]
        kept = self.kept(masked)
        there = np.isfinite(kept)
        cmrs = mean_over_records(kept[there], self.task.patients[there], resamples=self.resamples, seed=self.seed)
        nothing = Estimate(math.nan, math.nan, math.nan)
        empty = Sample(np.empty(0), np.empty((0, 0)), np.empty(0), np.empty(0))
        auroc, loss, samples = nothing, nothing, (empty, empty)
        if columns.size:
            scores = [
                np.concatenate([each.scores for each in ranked])[:, :, columns],
                np.stack([each.whole for each in self.seeds])[:, :, columns],
            ]
            gone, whole = score_classes(
                scores,
                self.task.truth[:, columns],
                self.task.patients,
                [(self.task.prompts.codes[c], "") for c in columns],
                decided=self.decided(columns),
                resamples=self.resamples,
                seed=self.seed,
            )
            auroc, samples = gone.macro, (gone.sample, whole.sample)
            loss = whole.less(gone)[0]
        one = masked[0]
        within = Estimate(cmrs.value, *np.clip([cmrs.low, cmrs.high], 0.0, 1.0).tolist())
        condition = Condition(one.kind, name, one.units, one.budget, int(there.sum()), within, auroc, loss)
        return _Figures(condition, kept, *samples)

    def apart(self, a: _Figures, b: _Figures) -> dict[str, Estimate]:
        """CMRS and AUROC of a less those of b, paired by record and resample."""
        difference = a.kept - b.kept
        there = np.isfinite(difference)
        cmrs = mean_over_records(difference[there], self.task.patients[there], resamples=self.resamples, seed=self.seed)
        return {"cmrs": cmrs, "auroc": _change([(a.masked, 1.0), (b.masked, -1.0)])}


def _change(samples: Sequence[tuple[Sample, float]]) -> Estimate:
    """A signed sum of macro AUROCs over the same classes and resamples."""
    if not samples[0][0].point.size:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(sum(sign * each.point.mean() for each, sign in samples))
    return Estimate(value, *change_interval(samples))


def compare(mine: MissingnessResult, theirs: MissingnessResult, *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """For every mask, CMRS of mine less theirs, and the AUROC that theirs loses beyond what mine loses.

    Both are above 0 where mine holds better. Paired by record; CMRS over the records that both cover.
    Raises ValueError for other records or masks.
    """
    pairs = list(zip(mine.figures, theirs.figures, strict=True))
    if not np.array_equal(mine.patients_of, theirs.patients_of):
        raise ValueError("not the same records")
    out = []
    for a, b in pairs:
        if (a.condition.kind, a.condition.mask) != (b.condition.kind, b.condition.mask):
            raise ValueError("not the same masks")
        difference = a.kept - b.kept
        there = np.isfinite(difference)
        cmrs = mean_over_records(difference[there], mine.patients_of[there], resamples=resamples, seed=seed)
        spared = _change([(a.masked, 1.0), (a.whole, -1.0), (b.masked, -1.0), (b.whole, 1.0)])
        named = {"kind": a.condition.kind, "mask": a.condition.mask, "records": int(there.sum())}
        out.append({**named, "cmrs": plain(asdict(cmrs)), "auroc_spared": plain(asdict(spared))})
    return out


def comparison_lines(compared: Sequence[dict[str, Any]]) -> list[str]:
    """Text for people of what `compare` found."""
    lines = ["less the other encoder, paired: above 0 holds better"]
    for each in compared:
        cmrs, spared = (
            Estimate(*(math.nan if v is None else v for v in each[key].values())) for key in ("cmrs", "auroc_spared")
        )
        lines.append(f"  {each['kind']}, {each['mask']}: CMRS {_said(cmrs)}, loss of AUROC spared {_said(spared)}")
    return lines
