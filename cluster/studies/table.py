"""The table of a study: what each variant is worth, and by how much the reference is ahead of it, paired by patient.

A figure is the mean AUROC over classes, folds and seeds. The same patients are scored once by every seed: an interval
resamples whole patients, averages the seeds within each resample, and takes the same resamples for every row. It says
what other patients would change; the spread over seeds stands beside it. Only cells that every variant has are
compared, and floors stand beside them at the same folds and seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cardialign.cluster.studies.design import FLOORS, Design
from cardialign.cluster.studies.measures import FRESH, PROBE, ranked, words_of
from cardialign.cluster.studies.outcome import Outcome
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shown import between
from cardialign.pretrain.evaluation.intervals import Sample, difference_interval, mean_interval
from cardialign.pretrain.evaluation.scored import ScoredRecords, joint_samples
from cardialign.pretrain.evaluation.scoring import class_auroc, decided_at, usable_classes

GAINED = "gained"
"""Of a row: what training gave its probe over that of its own encoder with fresh weights."""
HOW = (
    "95 % intervals are of patients: whole patients are resampled, the same ones for every row, and the seeds, which "
    "all score the same patients, are averaged within each resample; sd is the spread over seeds."
)


def study_table(
    design: Design, outcomes: Sequence[Outcome], resamples: int = 1000, floors: Sequence[Outcome] = ()
) -> dict[str, Any]:
    """Rows of the variants, in their order, then of the floors; cells: how many of them each figure is made of.

    Raises UserError when no fold and seed has all variants, cells of a fold were scored on other records, or no class
    can be ranked.
    """
    shared = compared(design, outcomes)
    own = {each.name: [one for one in shared if one.cell.variant.name == each.name] for each in design.variants}
    own |= {name: mine for name in FLOORS if (mine := [one for one in floors if one.cell.variant.name == name])}
    rows = {name: _row(mine) for name, mine in own.items()}
    for measure in ranked(design.measures):
        having = {name: mine for name, mine in own.items() if measure in mine[0].scores}
        samples = samples_of(having, measure, resamples)
        for name, sample in samples.items():
            low, high = mean_interval(sample)
            cells = by_cell(own[name], measure)
            found = {"auroc": _figure(sample), "low": low, "high": high, "seed_sd": spread_of(cells), "by_cell": cells}
            if name != design.reference:
                ahead = _figure(samples[design.reference]) - _figure(sample)
                found["reference_ahead"] = ahead
                found["ahead_low"], found["ahead_high"] = difference_interval(samples[design.reference], sample)
            rows[name][measure] = found
    if FRESH in design.measures:
        for name, mine in own.items():
            if FRESH in mine[0].scores:
                rows[name][GAINED] = _gained(mine, resamples)
    return {
        "study": design.name,
        "recipe": design.recipe,
        **({} if design.records is None else {"records": design.records}),
        "measures": list(design.measures),
        "reference": design.reference,
        "folds": sorted({each.cell.fold for each in shared}),
        "seeds": sorted({each.cell.seed for each in shared}),
        "intervals": HOW,
        "rows": list(rows.values()),
    }


def _gained(own: Sequence[Outcome], resamples: int) -> dict[str, float]:
    """What training gave the probe of a row: over that of its own encoder with fresh weights, paired by patient."""
    fresh = [replace(each, scores={PROBE: each.scores[FRESH]}) for each in own]
    samples = samples_of({"trained": list(own), "fresh": fresh}, PROBE, resamples)
    low, high = difference_interval(samples["trained"], samples["fresh"])
    before = _figure(samples["fresh"])
    return {"fresh": before, "gained": _figure(samples["trained"]) - before, "low": low, "high": high}


def _figure(sample: Sample) -> float:
    return float(sample.point.mean())


def _row(own: Sequence[Outcome]) -> dict[str, Any]:
    variant = own[0].cell.variant
    return {
        "variant": variant.name,
        "floor": bool(own[0].facts.get("floor")),
        "words": variant.words,
        "changes": variant.changes,
        "recipe": variant.recipe,
        "parameters": own[0].facts["parameters"],
        "trained_parameters": own[0].facts.get("trained_parameters"),
        "gflop": own[0].facts.get("gflop"),
        "effective_rank": _mean_fact(own, "effective_rank"),
        "cpu_seconds": round(float(np.mean([each.facts["cpu_seconds"] for each in own])), 1),
        "cells": len(own),
    }


def _mean_fact(own: Sequence[Outcome], key: str) -> float | None:
    """Over the cells; None where one does not say it, as those of earlier releases."""
    values = [each.facts.get(key) for each in own]
    if any(isinstance(each, bool) or not isinstance(each, int | float) for each in values):
        return None
    return round(float(np.mean(np.asarray(values, dtype=float))), 2)


def compared(design: Design, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The cells that a table is made of: of whole seeds, every fold of which has all variants.

    Raises UserError when there are none.
    """
    names = {variant.name for variant in design.variants}
    having: dict[tuple[int, int], set[str]] = {}
    for each in outcomes:
        having.setdefault((each.cell.seed, each.cell.fold), set()).add(each.cell.variant.name)
    whole = {place for place, found in having.items() if found >= names}
    if not whole:
        raise UserError(
            "no fold and seed has all variants of the study yet", "let it go on: the same command continues, or --only"
        )
    seeds = {seed for seed, _ in whole}
    folds = {fold for _, fold in whole}
    full = {seed for seed in seeds if all((seed, fold) in whole for fold in folds)} or {min(seeds)}
    return [each for each in outcomes if (each.cell.seed, each.cell.fold) in whole and each.cell.seed in full]


def samples_of(own: dict[str, list[Outcome]], measure: str, resamples: int) -> dict[str, Sample]:
    """Per row one sample over the classes of all folds, its seeds averaged."""
    every = [each for mine in own.values() for each in mine]
    folds = sorted({each.cell.fold for each in every})
    for fold in folds:
        _alike([each for each in every if each.cell.fold == fold], measure)
    systems = [
        [scored_of([each for each in mine if each.cell.fold == fold], measure) for fold in folds]
        for mine in own.values()
    ]
    try:
        samples = joint_samples(systems, resamples)
    except ValueError:
        raise UserError("no class has positives and negatives in a fold kept out", "use larger folds") from None
    return dict(zip(own, samples, strict=True))


def scored_of(cells: Sequence[Outcome], measure: str) -> ScoredRecords:
    """What the seeds of one variant made of the records of one fold."""
    first = cells[0]
    scores = np.stack([each.scores[measure] for each in cells])
    names = tuple((code, "") for code in first.codes[measure])
    return ScoredRecords(scores, first.truth[measure], first.patients[measure], names, first.decided.get(measure))


def _alike(here: Sequence[Outcome], measure: str) -> Outcome:
    """Any cell of a fold. Raises UserError where they do not have the same records and labels."""
    first = here[0]
    for each in here:
        parts = (first.truth, each.truth), (first.patients, each.patients), (first.codes, each.codes)
        for part, other in (*parts, (first.decided, each.decided)):
            if not np.array_equal(part.get(measure, ()), other.get(measure, ())):
                raise UserError(
                    f"cells {first.cell.name} and {each.cell.name} were not scored on the same records and labels",
                    "delete the older one of the two: the same command makes it anew",
                )
    return first


def by_cell(own: Iterable[Outcome], measure: str) -> list[dict[str, Any]]:
    """Macro AUROC of every fold and seed; None where no class can be ranked. `classes`: how many it is the mean of."""
    out = []
    for each in own:
        truth, decided = each.truth[measure], each.decided.get(measure)
        usable, _ = usable_classes(truth, decided)
        areas = class_auroc(each.scores[measure][:, usable], truth[:, usable], decided_at(decided, columns=usable))
        value = float(areas.mean()) if usable.size else None
        out.append({"fold": each.cell.fold, "seed": each.cell.seed, "auroc": value, "classes": int(usable.size)})
    return out


def spread_of(cells: Sequence[dict[str, Any]]) -> float | None:
    """Standard deviation of the seeds' figures, each over all classes of all folds; None of one seed."""
    seeds = sorted({each["seed"] for each in cells})
    if len(seeds) < 2:
        return None
    figures = []
    for seed in seeds:
        own = [each for each in cells if each["seed"] == seed and each["auroc"] is not None]
        figures.append(np.average([each["auroc"] for each in own], weights=[each["classes"] for each in own]))
    return float(np.std(figures, ddof=1))


def lines_of(table: dict[str, Any]) -> list[str]:
    """The table for a reader, in Markdown."""
    measures, gained = ranked(tuple(table["measures"])), FRESH in table["measures"]
    figures = [text for measure in measures for text in (f"{words_of(measure)} (95 %)", "reference ahead")]
    figures += ["over fresh weights"] if gained else []
    ranks = any(row.get("effective_rank") for row in table["rows"])
    figures += ["RankMe"] if ranks else []
    head = ["", "", *figures, "M par.", "M trained", "GFLOP", "CPU s", "cells"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in table["rows"]:
        figures = [text for measure in measures for text in _told(row.get(measure))]
        figures += [_told_gained(row.get(GAINED))] if gained else []
        figures += [f"{row['effective_rank']:.1f}" if row.get("effective_rank") else "-"] if ranks else []
        size = [f"{row[key] / 1e6:.2f}" if row[key] else "-" for key in ("parameters", "trained_parameters")]
        size.append(f"{row['gflop']:.2f}" if row["gflop"] else "-")
        name = f"*{row['variant']}*" if row["floor"] else row["variant"]
        cells = [name, row["words"], *figures, *size, f"{row['cpu_seconds']:.0f}", str(row["cells"])]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    folds, seeds = (", ".join(map(str, table[key])) for key in ("folds", "seeds"))
    about = (
        f"Reference: {table['reference']}. Folds kept out in turn: {folds}; seeds: {seeds}. Floors in italics. "
        "M par. and GFLOP (forward, one record) are of the ECG encoder, M trained of all that trains"
        f"{'; RankMe: how many directions its features use' if ranks else ''}."
    )
    return [*lines, "", f"{about} {table['intervals']}", "", *_standing(table)]


def _told_gained(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['gained']:+z.3f} ({between(found['low'], found['high'])})"


def _told(found: dict[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    spread = "" if found["seed_sd"] is None else f", sd {found['seed_sd']:.3f}"
    figure = f"{found['auroc']:.3f} ({found['low']:.3f}-{found['high']:.3f}){spread}"
    if "reference_ahead" not in found:
        return figure, "-"
    return figure, f"{found['reference_ahead']:+z.3f} ({between(found['ahead_low'], found['ahead_high'])})"


def _standing(table: dict[str, Any]) -> list[str]:
    """Whom the reference is ahead of with the whole interval of the paired difference, and whom not."""
    lines = []
    for measure in ranked(tuple(table["measures"])):
        rows = [row for row in table["rows"] if "reference_ahead" in row.get(measure, {})]
        ahead = [row["variant"] for row in rows if row[measure]["ahead_low"] > 0]
        others = [row["variant"] for row in rows if not row[measure]["ahead_low"] > 0]
        said = f"the reference is ahead, lower bound above 0, of {', '.join(ahead) or 'none'}"
        lines.append(f"- {words_of(measure)}: {said}; not of {', '.join(others) or 'none'}")
    return lines
