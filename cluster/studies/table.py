"""The table of a study: what each variant is worth, and how much that is less than the reference, paired by patient.

A figure is the mean AUROC over classes, folds and seeds. Seeds are averaged within each resample of the patients, and
the same resamples serve every variant: an interval says what other patients would change, the spread over seeds stands
beside it. Only cells that every variant has are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cardialign.cluster.studies.cells import MEASURES, Outcome
from cardialign.cluster.studies.design import Design
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.evaluation.intervals import Sample, difference_interval, mean_interval
from cardialign.pretrain.evaluation.scoring import score_classes, usable_classes


def study_table(design: Design, outcomes: Sequence[Outcome], resamples: int = 1000) -> dict[str, Any]:
    """Rows of the variants, in their order; cells: how many of them each figure is made of.

    Raises UserError when no fold and seed has all variants, or no class can be ranked.
    """
    shared = _shared(design, outcomes)
    rows: list[dict[str, Any]] = []
    for variant in design.variants:
        own = [each for each in shared if each.cell.variant.name == variant.name]
        rows.append(
            {
                "variant": variant.name,
                "words": variant.words,
                "changes": variant.changes,
                "parameters": own[0].facts["parameters"],
                "cpu_seconds": round(float(np.mean([each.facts["cpu_seconds"] for each in own])), 1),
                "cells": len(own),
            }
        )
    for measure in MEASURES:
        samples, seeds = _samples(design, shared, measure, resamples)
        for row in rows:
            name = row["variant"]
            low, high = mean_interval(samples[name])
            found = {"auroc": _figure(samples[name]), "low": low, "high": high, "seed_sd": seeds[name]}
            if name != design.reference:
                reference = samples[design.reference]
                below, above = difference_interval(samples[name], reference)
                less = _figure(samples[name]) - _figure(reference)
                found |= {"less_reference": less, "less_low": below, "less_high": above}
            row[measure] = found
    return {"study": design.name, "recipe": design.recipe, "reference": design.reference, "rows": rows}


def _figure(sample: Sample) -> float:
    return float(sample.point.mean())


def _shared(design: Design, outcomes: Sequence[Outcome]) -> list[Outcome]:
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


def _samples(
    design: Design, outcomes: Sequence[Outcome], measure: str, resamples: int
) -> tuple[dict[str, Sample], dict[str, float]]:
    """Per variant one sample over the classes of all folds, seeds averaged, and the spread of its seeds."""
    pieces: dict[str, list[Sample]] = {variant.name: [] for variant in design.variants}
    by_seed: dict[str, dict[int, list[np.ndarray]]] = {variant.name: {} for variant in design.variants}
    for fold in sorted({each.cell.fold for each in outcomes}):
        own = [each for each in outcomes if each.cell.fold == fold]
        truth, patients = own[0].truth[measure], own[0].patients[measure]
        usable, _ = usable_classes(truth)
        if not usable.size:
            continue
        codes = [(own[0].codes[measure][c], "") for c in usable]
        scores = [each.scores[measure][:, usable] for each in own]
        tables = score_classes(scores, truth[:, usable], patients, codes, resamples=resamples, seed=fold)
        for variant in design.variants:
            mine = [table.sample for each, table in zip(own, tables, strict=True) if each.cell.variant == variant]
            pieces[variant.name].append(
                Sample(
                    np.mean([sample.point for sample in mine], axis=0),
                    np.mean([sample.resampled for sample in mine], axis=0),
                    mine[0].having,
                    mine[0].lacking,
                )
            )
            for each, table in zip(own, tables, strict=True):
                if each.cell.variant == variant:
                    by_seed[variant.name].setdefault(each.cell.seed, []).append(table.sample.point)
    if not all(pieces.values()):
        raise UserError("no class has positives and negatives in a fold kept out", "use larger folds")
    joined = {
        name: Sample(
            np.concatenate([piece.point for piece in parts]),
            np.concatenate([piece.resampled for piece in parts], axis=1),
            np.concatenate([piece.having for piece in parts]),
            np.concatenate([piece.lacking for piece in parts]),
        )
        for name, parts in pieces.items()
    }
    spread = {
        name: float(np.std([np.concatenate(parts).mean() for parts in seeds.values()], ddof=1))
        if len(seeds) > 1
        else 0.0
        for name, seeds in by_seed.items()
    }
    return joined, spread


def lines_of(table: dict[str, Any]) -> list[str]:
    """The table for a reader, in Markdown."""
    head = [
        "variant",
        "",
        "zero-shot (95 %)",
        "less reference",
        "probe (95 %)",
        "less reference",
        "M par.",
        "CPU s",
        "cells",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in table["rows"]:
        figures = []
        for measure in MEASURES:
            found = row[measure]
            figures.append(f"{found['auroc']:.3f} ({found['low']:.3f}-{found['high']:.3f}), sd {found['seed_sd']:.3f}")
            figures.append(
                f"{found['less_reference']:+.3f} ({found['less_low']:+.3f} to {found['less_high']:+.3f})"
                if "less_reference" in found
                else "-"
            )
        cells = [row["variant"], row["words"], *figures, f"{row['parameters'] / 1e6:.2f}", f"{row['cpu_seconds']:.0f}"]
        lines.append("| " + " | ".join([*cells, str(row["cells"])]) + " |")
    return lines
