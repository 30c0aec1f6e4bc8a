"""The table of the paediatric study: macro AUROC of every arm on ages kept out and on ages learnt from, paired
by patient with B4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cardialign.cluster.studies.outcome import Outcome
from cardialign.cluster.studies.paediatric.cells import MEASURES
from cardialign.cluster.studies.paediatric.design import ARMS, PLAIN, REFERENCE, held_out_words
from cardialign.cluster.studies.table import HOW, by_cell, samples_of, spread_of
from cardialign.data_shards.errors import UserError
from cardialign.pretrain.evaluation.intervals import difference_interval, mean_interval

WORDS = {"held_out": "ages kept out", "seen": "ages learnt from"}


def study_table(outcomes: Sequence[Outcome], resamples: int) -> dict[str, Any]:
    """Of the seeds that B3 and B4 have, and of the arms that have all these. Raises UserError where there is none."""
    there = {(one.cell.variant.name, one.cell.seed) for one in outcomes}
    seeds = sorted({seed for _, seed in there if {(PLAIN, seed), (REFERENCE, seed)} <= there})
    if not seeds:
        raise UserError(f"no seed has {PLAIN} and {REFERENCE} yet", "let it go on: the same command continues")
    arms = [arm for arm in ARMS if all((arm.name, seed) in there for seed in seeds)]
    own = {arm.name: [one for one in outcomes if _is(one, arm.name) and one.cell.seed in seeds] for arm in arms}
    rows: dict[str, dict[str, Any]] = {
        arm.name: {
            "arm": arm.name,
            "words": arm.words,
            "parameters": own[arm.name][0].facts["parameters"],
            "cpu_seconds": round(float(np.mean([one.facts["cpu_seconds"] for one in own[arm.name]])), 1),
            "choices": [one.facts["choice"] for one in own[arm.name]],
            "tried": [one.facts["tried"] for one in own[arm.name]],
        }
        for arm in arms
    }
    for measure in MEASURES:
        samples = samples_of(own, measure, resamples)
        best = samples[REFERENCE]
        for name, sample in samples.items():
            low, high = mean_interval(sample)
            cells = by_cell(own[name], measure)
            rows[name][measure] = {
                "auroc": float(sample.point.mean()),
                "low": low,
                "high": high,
                "seed_sd": spread_of(cells),
                "classes": dict(zip(_classes(own[name], measure), sample.point.tolist(), strict=True)),
            }
            if name != REFERENCE:
                ahead = difference_interval(best, sample)
                rows[name][measure]["ahead"] = [float(best.point.mean() - sample.point.mean()), *ahead]
    return {"study": "paediatric", "seeds": seeds, "kept_out": held_out_words(), "rows": list(rows.values())}


def _is(outcome: Outcome, arm: str) -> bool:
    return bool(outcome.cell.variant.name == arm)


def _classes(own: Sequence[Outcome], measure: str) -> list[str]:
    from cardialign.pretrain.evaluation.scoring import usable_classes

    usable, _ = usable_classes(own[0].truth[measure], own[0].decided.get(measure))
    return [own[0].codes[measure][c] for c in usable]


def lines_of(table: dict[str, Any]) -> list[str]:
    """For a reader, in Markdown; what the gate is worth comes last, class by class."""
    head = ["", "", *(text for words in WORDS.values() for text in (f"{words} (95 %)", f"{REFERENCE} ahead"))]
    lines = ["| " + " | ".join([*head, "M par.", "CPU s", "chosen"]) + " |", "|" + "---|" * (len(head) + 3)]
    for row in table["rows"]:
        figures = [text for measure in MEASURES for text in _told(row[measure])]
        rest = [f"{row['parameters'] / 1e6:.2f}", f"{row['cpu_seconds']:.0f}", ", ".join(row["choices"])]
        lines.append("| " + " | ".join([row["arm"], row["words"], *figures, *rest]) + " |")
    by = {row["arm"]: row["held_out"]["classes"] for row in table["rows"]}
    gains = {code: by[REFERENCE][code] - by[PLAIN][code] for code in by[REFERENCE]}
    told = ", ".join(f"{code} {gain:+z.3f}" for code, gain in sorted(gains.items(), key=lambda item: -item[1]))
    plain = next(row for row in table["rows"] if row["arm"] == PLAIN)["held_out"]["ahead"]
    sign = "above 0" if plain[1] > 0 else "not above 0"
    return [
        *lines,
        "",
        f"Nobody is fine-tuned or chosen on {', '.join(table['kept_out'])}. Seeds: {table['seeds']}. {HOW}",
        "",
        f"- the gate on ages kept out ({REFERENCE} - {PLAIN}): {100 * plain[0]:+z.1f} points "
        f"({100 * plain[1]:+z.1f} to {100 * plain[2]:+z.1f}), interval {sign}",
        f"- by class: {told}",
    ]


def _told(found: dict[str, Any]) -> tuple[str, str]:
    spread = "" if found["seed_sd"] is None else f", sd {found['seed_sd']:.3f}"
    figure = f"{found['auroc']:.3f} ({found['low']:.3f}-{found['high']:.3f}){spread}"
    if "ahead" not in found:
        return figure, "-"
    return figure, "{:+z.3f} ({:+z.3f} to {:+z.3f})".format(*found["ahead"])
