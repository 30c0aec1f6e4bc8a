"""A study that asks what is left with leads and time missing: the scores of each cell, and its tables.

Every variant meets the same masks. A figure is the mean AUROC over classes, folds, seeds and draws; what is lost is
paired with the whole records by patient, and so is what the reference is ahead by.
Legend: K numbers of leads, H shares of time, D draws, P presets, n records, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cardialign.data_shards.shown import between
from cardialign.pretrain.evaluation.intervals import Sample, difference_interval, mean_interval
from cardialign.pretrain.evaluation.result import plain
from cardialign.pretrain.evaluation.scoring import Estimate, score_classes

if TYPE_CHECKING:
    from cardialign.data_shards.shard_set.shard_set import ShardSet
    from cardialign.pretrain.evaluation.missingness.surface.measure import SurfacePlan
    from cardialign.pretrain.evaluation.task import EvaluationTask
    from cardialign.pretrain.export.usable import UsableEncoder

RANDOM, PRESETS = "missing_random", "missing_presets"
"""Measures of a cell: scores (K x H x D, n, C) and (P, n, C)."""
MEASURES = (RANDOM, PRESETS)
RECORDS, DRAWS, VERSION = 500, 3, 1


class Scored(Protocol):
    """What of a cell the tables are made of (`cells.Outcome`)."""

    @property
    def scores(self) -> dict[str, np.ndarray]: ...

    @property
    def truth(self) -> dict[str, np.ndarray]: ...

    @property
    def patients(self) -> dict[str, np.ndarray]: ...

    @property
    def codes(self) -> dict[str, list[str]]: ...

    @property
    def decided(self) -> dict[str, np.ndarray]: ...


Rows = dict[str, dict[int, list[Any]]]
"""Variant -> fold -> its seeds."""


def plan_of_study() -> SurfacePlan:
    """Grid, presets and draws: those of `evaluate missingness`."""
    from cardialign.pretrain.evaluation.missingness.surface.measure import SurfacePlan

    return SurfacePlan(draws=DRAWS)


def add_missing(found: Scored, encoder: UsableEncoder, shard_set: ShardSet, task: EvaluationTask) -> None:
    """Put the scores under all masks beside those of a cell. Raises as `Ranked.by_words` and `score_surface`."""
    from cardialign.pretrain.evaluation.missingness.surface.measure import check_leads, having_leads, score_surface
    from cardialign.pretrain.evaluation.missingness.surface.scorers import Ranked, scorer_of_words

    plan = plan_of_study()
    check_leads(encoder, plan)
    ranked = having_leads(Ranked.by_words(task), shard_set, plan.presets).drawn(RECORDS, plan.seed)
    scored = score_surface(scorer_of_words(encoder, shard_set, task, ranked.codes), shard_set, ranked, plan)
    parts = {RANDOM: scored.random.reshape(-1, *scored.whole.shape), PRESETS: scored.presets}
    for measure, scores in parts.items():
        found.scores[measure], found.truth[measure] = scores, ranked.truth
        found.patients[measure], found.codes[measure] = ranked.patients.astype(str), list(ranked.codes)
        if ranked.decided is not None:
            found.decided[measure] = ranked.decided


def missing_table(variants: Sequence[str], reference: str, rows: Rows, resamples: int) -> dict[str, Any]:
    """Of each variant the surface and the presets: auroc, lost and by how much the reference is ahead."""
    plan = plan_of_study()
    H, D = len(plan.time), plan.draws
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for fold in sorted(rows[reference]):
        joined = _samples({name: rows[name][fold] for name in variants}, rows, resamples, D)
        for name in variants:
            before = samples[name]
            samples[name] = (
                [_joined(pair) for pair in zip(before, joined[name], strict=True)] if before else joined[name]
            )
    places = [(number, share) for number in plan.leads for share in plan.time]
    out = []
    for name in variants:
        own, other = samples[name], samples[reference]
        cells = [
            {"leads": number, "time": share, **_told(own[0], own[k], other[k])}
            for k, (number, share) in enumerate(places)
        ]
        presets = [
            {"name": preset.name, "leads": list(preset.leads), **_told(own[0], own[k], other[k])}
            for k, preset in enumerate(plan.presets, len(plan.leads) * H)
        ]
        out.append({"variant": name, "cells": cells, "presets": presets})
    return {"leads": list(plan.leads), "time": list(plan.time), "draws": D, "rows": out}


def _samples(here: dict[str, list[Any]], rows: Rows, resamples: int, draws: int) -> dict[str, list[Sample]]:
    """Of one fold: variant -> one sample for each cell of the grid, then for each preset. Seeds and draws count as
    one."""
    first = next(iter(here.values()))[0]
    everybody = np.unique(
        np.concatenate([one.patients[RANDOM] for of in rows.values() for seeds in of.values() for one in seeds])
    )
    scores = []
    for seeds in here.values():
        grid = [one.scores[RANDOM].reshape(-1, draws, *one.scores[RANDOM].shape[1:]) for one in seeds]
        scores += [np.concatenate([each[k] for each in grid]) for k in range(len(grid[0]))]
        scores += [np.stack([one.scores[PRESETS][p] for one in seeds]) for p in range(len(seeds[0].scores[PRESETS]))]
    tables = score_classes(
        scores,
        first.truth[RANDOM],
        first.patients[RANDOM],
        [(code, "") for code in first.codes[RANDOM]],
        resamples=resamples,
        seed=0,
        among=everybody,
        decided=first.decided.get(RANDOM),
    )
    each = len(tables) // len(here)
    return {name: [t.sample for t in tables[k * each : (k + 1) * each]] for k, name in enumerate(here)}


def _joined(parts: tuple[Sample, Sample]) -> Sample:
    one, other = parts
    return Sample(
        np.concatenate([one.point, other.point]),
        np.concatenate([one.resampled, other.resampled], axis=1),
        np.concatenate([one.having, other.having]),
        np.concatenate([one.lacking, other.lacking]),
    )


def _told(whole: Sample, here: Sample, reference: Sample) -> dict[str, Any]:
    def less(a: Sample, b: Sample) -> Estimate:
        return Estimate(float(a.point.mean() - b.point.mean()), *difference_interval(a, b))

    figures = {
        "auroc": Estimate(float(here.point.mean()), *mean_interval(here)),
        "lost": less(whole, here),
        "reference_ahead": less(reference, here),
    }
    return {key: plain(asdict(value)) for key, value in figures.items()}


def missing_lines(table: dict[str, Any]) -> list[str]:
    """The tables for a reader, in Markdown."""
    first = table["rows"][0]
    heads = [
        f"only {', '.join(each['leads'])}" if len(each["leads"]) < 5 else each["name"] for each in first["presets"]
    ]
    numbers = [number for number in table["leads"] if number]
    lines = [
        "Macro AUROC, and points lost with leads missing at random, no time missing:",
        "",
        *_markdown(["", "whole", *(f"{number} missing" for number in numbers)]),
    ]
    for row in table["rows"]:
        at = {each["leads"]: each for each in row["cells"] if each["time"] == 0}
        lines.append(_line([row["variant"], _whole(at[0]), *(_cell(at[k]) for k in numbers)]))
    lines += ["", "The same with these leads alone:", "", *_markdown(["", *heads])]
    lines += [_line([row["variant"], *(_cell(each) for each in row["presets"])]) for row in table["rows"]]
    for row in table["rows"]:
        head = [f"{row['variant']}: leads missing", *(f"time missing {100 * share:g} %" for share in table["time"])]
        lines += ["", *_markdown(head)]
        for number in table["leads"]:
            own = [each for each in row["cells"] if each["leads"] == number]
            lines.append(
                _line([str(number), *(_cell(each) if number or each["time"] else _whole(each) for each in own)])
            )
    return lines


def _whole(figures: dict[str, Any]) -> str:
    return f"{figures['auroc']['value']:.3f}"


def _cell(figures: dict[str, Any]) -> str:
    lost = {key: math.nan if value is None else 100 * value for key, value in figures["lost"].items()}
    return f"{_whole(figures)}, {-lost['value']:+z.1f} ({between(lost['low'], lost['high'], '.1f')})"


def _markdown(head: Sequence[str]) -> list[str]:
    return [_line(head), "|" + "---|" * len(head)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
