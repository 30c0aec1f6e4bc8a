"""What is left of an encoder's AUROC when leads and time are missing: a surface, with what is lost, paired by patient.

Several encoders of one recipe, of one seed each, count as one, and so do the random draws: a figure is the mean over
them, all resampled together. Points are hundredths of AUROC.
Legend: S seeds, D draws, n records, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cardialign.data_shards.shown import between
from cardialign.pretrain.evaluation.missingness.surface.measure import SurfacePlan, SurfaceScores, evidence_of
from cardialign.pretrain.evaluation.missingness.surface.scorers import Ranked
from cardialign.pretrain.evaluation.result import plain
from cardialign.pretrain.evaluation.scoring import ClassTable, Estimate, decided_at, score_classes

RANDOM, ALIKE, EVIDENCE = "random", "random, the same classes", "primary evidence"
"""Which leads are missing: any, over all classes; any, over the classes whose evidence is known; these leads first."""


@dataclass(frozen=True)
class Cell:
    """leads: how many are missing; time: which share; lost: AUROC of the whole records less this one, paired."""

    leads: int
    time: float
    auroc: Estimate
    lost: Estimate
    table: ClassTable = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        return {"leads": self.leads, "time": self.time, "auroc": asdict(self.auroc), "lost": asdict(self.lost)}


@dataclass(frozen=True)
class PresetFigure:
    """A preset's name and the leads that are there, with figures as of a `Cell`."""

    name: str
    leads: tuple[str, ...]
    auroc: Estimate
    lost: Estimate
    table: ClassTable = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        told = {"name": self.name, "leads": list(self.leads)}
        return {**told, "auroc": asdict(self.auroc), "lost": asdict(self.lost)}


@dataclass(frozen=True)
class Surface:
    """cells by (leads, time), the whole record among them at (0, 0); codes of the classes that the macro is over."""

    chosen: str
    codes: tuple[str, ...]
    leads: tuple[int, ...]
    time: tuple[float, ...]
    cells: dict[tuple[int, float], Cell]

    def to_dict(self) -> dict[str, Any]:
        cells = [each.to_dict() for each in self.cells.values()]
        return {"chosen": self.chosen, "classes": list(self.codes), "cells": cells}


@dataclass(frozen=True)
class SurfaceResult:
    """surfaces: random first, then of the classes with known evidence, where that was asked for. seeds: encoders."""

    name: str
    measure: str
    records: int
    patients: int
    seeds: int
    draws: int
    surfaces: list[Surface]
    presets: list[PresetFigure]
    seconds: float

    @property
    def whole(self) -> Cell:
        return self.surfaces[0].cells[0, 0.0]

    def to_dict(self) -> dict[str, Any]:
        told: dict[str, Any] = plain(
            {
                "measure": self.measure,
                "on": self.name,
                "records": self.records,
                "patients": self.patients,
                "auroc": asdict(self.whole.auroc),
                "surfaces": [each.to_dict() for each in self.surfaces],
                "presets": [each.to_dict() for each in self.presets],
                "seconds": self.seconds,
            }
        )
        return told

    def lines(self) -> list[str]:
        """Text for people."""
        whole, classes = self.whole.auroc, len(self.surfaces[0].codes)
        out = [
            f"missingness, {self.measure}, {self.name}: {self.records} records of {self.patients} patients",
            f"macro AUROC of {classes} class{'es' * (classes != 1)}, whole records: {whole.value:.3f} ("
            f"{between(whole.low, whole.high, '.3f')}); below: AUROC, and points lost with their 95 % interval, paired",
        ]
        for each in self.surfaces:
            out += ["", *_grid(each)]
        if self.presets:
            rows = [[each.name, ", ".join(each.leads), _told(each)] for each in self.presets]
            out += ["", *_aligned([["only these leads", "", "macro AUROC"], *rows])]
        return out


def _grid(surface: Surface) -> list[str]:
    head = [f"leads missing, {surface.chosen}", *(f"time missing {100 * share:g} %" for share in surface.time)]
    rows = [[str(k), *(_told(surface.cells[k, h]) for h in surface.time)] for k in surface.leads]
    lines = _aligned([head, *rows])
    return lines if surface.chosen == RANDOM else [*lines, f"of {', '.join(surface.codes)}"]


def _told(cell: Cell | PresetFigure) -> str:
    return f"{cell.auroc.value:.3f}" + (f" {points(cell.lost)}" if cell.lost.value or cell.lost.high else "")


def points(lost: Estimate) -> str:
    """What is lost, in points of AUROC: `-2.1 (1.4 to 2.9)`."""
    low_high = f" ({between(100 * lost.low, 100 * lost.high, '.1f')})" if math.isfinite(lost.low) else ""
    return f"{-100 * lost.value:+z.1f}{low_high}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def surface_result(
    seeds: Sequence[SurfaceScores], ranked: Ranked, plan: SurfacePlan, measure: str, *, resamples: int, seed: int
) -> SurfaceResult:
    """The figures of the encoders in `seeds`, scored on the same records under the same masks; measure: in words."""
    everything = np.arange(len(ranked.codes))
    evident = np.flatnonzero(evidence_of(ranked.codes).any(axis=1))
    places = [(k, h) for k in range(len(plan.leads)) for h in range(len(plan.time))]

    def tables(scores: Sequence[np.ndarray], columns: np.ndarray) -> list[ClassTable]:
        return score_classes(
            [each[..., columns] for each in scores],
            ranked.truth[:, columns],
            ranked.patients,
            [(ranked.codes[c], "") for c in columns],
            resamples=resamples,
            seed=seed,
            decided=decided_at(ranked.decided, columns=columns),
        )

    whole = np.stack([each.whole for each in seeds])
    random = [np.concatenate([each.random[k, h] for each in seeds]) for k, h in places[1:]]
    presets = [np.stack([each.presets[p] for each in seeds]) for p in range(len(plan.presets))]
    found = tables([whole, *random, *presets], everything)
    cells, rest = found[: len(places)], found[len(places) :]
    codes = tuple(ranked.codes[c] for c in evident)
    surfaces = [_surface(RANDOM, ranked.codes, plan, cells)]
    if plan.evidence:
        kept = [each.evidence for each in seeds if each.evidence is not None]
        chosen = [np.stack([each[k, h] for each in kept]) for k, h in places[1:]]
        both = tables([whole, *random, *chosen], evident)
        surfaces.append(_surface(ALIKE, codes, plan, both[: len(places)]))
        surfaces.append(_surface(EVIDENCE, codes, plan, [both[0], *both[len(places) :]]))
    figures = [
        PresetFigure(preset.name, preset.leads, table.macro, found[0].less(table)[0], table)
        for preset, table in zip(plan.presets, rest, strict=True)
    ]
    return SurfaceResult(
        ranked.name,
        measure,
        len(ranked.rows),
        len(np.unique(ranked.patients)),
        len(seeds),
        plan.draws,
        surfaces,
        figures,
        sum(each.seconds for each in seeds),
    )


def _surface(chosen: str, codes: tuple[str, ...], plan: SurfacePlan, tables: Sequence[ClassTable]) -> Surface:
    found = iter(tables)
    cells = {}
    for number in plan.leads:
        for share in plan.time:
            table = next(found)
            lost = Estimate(0.0, 0.0, 0.0) if table is tables[0] else tables[0].less(table)[0]
            cells[number, share] = Cell(number, share, table.macro, lost, table)
    return Surface(chosen, codes, plan.leads, plan.time, cells)


def paired(mine: SurfaceResult, theirs: SurfaceResult) -> list[dict[str, Any]]:
    """AUROC of mine less that of theirs in every cell and preset, paired by patient: above 0 mine is better there.

    spared: the points that theirs loses beyond mine. Both were scored on the same records, masks and resamples.
    """
    out = []
    for a, b in zip(mine.surfaces, theirs.surfaces, strict=True):
        for place, cell in a.cells.items():
            told = {"chosen": a.chosen, "leads": cell.leads, "time": cell.time}
            out.append({**told, **_difference(cell, b.cells[place])})
    for one, other in zip(mine.presets, theirs.presets, strict=True):
        out.append({"preset": one.name, **_difference(one, other)})
    return out


def _difference(a: Cell | PresetFigure, b: Cell | PresetFigure) -> dict[str, Any]:
    told: dict[str, Any] = plain(asdict(a.table.less(b.table)[0]))
    return {"auroc": told, "spared": b.lost.value - a.lost.value}


def paired_lines(differences: Sequence[dict[str, Any]]) -> list[str]:
    """Text for people of what `paired` found, in points of AUROC."""
    rows = [["less the other encoder, paired", "points"]]
    for each in differences:
        where = f"only {each['preset']}" if "preset" in each else ""
        if not where:
            where = f"{each['leads']} leads, {100 * each['time']:g} % of the time missing ({each['chosen']})"
        found = Estimate(*(math.nan if value is None else 100 * value for value in each["auroc"].values()))
        rows.append([where, f"{found.value:+z.1f} ({between(found.low, found.high, '+.1f')})"])
    return _aligned(rows)
