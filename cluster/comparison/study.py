"""The variants of a study, from its table and, for pairs, the scores of its cells."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.cluster.comparison.cost import CPU, Cost
from cardialign.cluster.comparison.figure import NONE, PROBE, ZERO_SHOT, Column, Figure, task_of
from cardialign.cluster.comparison.results import share_of, words
from cardialign.cluster.studies.design import FLOORS, Cell, Variant
from cardialign.cluster.studies.measures import ZERO_SHOT as ZERO_SHOT_OF_STUDY
from cardialign.cluster.studies.measures import share_of as share_of_labels
from cardialign.cluster.studies.outcome import CELL, SCORES, Outcome, read_scores
from cardialign.cluster.studies.table import scored_of
from cardialign.cluster.studies.work import CELLS, FLOOR_CELLS
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.files import is_plain_name, read_json
from cardialign.pretrain.evaluation.scored import ScoredRecords


@dataclass(frozen=True)
class StudyVariant:
    study: str
    variant: str
    changes: dict[str, Any]
    cost: Cost
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...] = ()


def variants_of(folder: Path, table: Mapping[str, Any]) -> list[StudyVariant]:
    """Every row of the table. Raises KeyError, TypeError or ValueError for what no study wrote."""
    study, out = words(table["study"]), []
    for row in table["rows"]:
        variant = words(row["variant"])
        figures = [
            _figure(folder, table, row, measure)
            for measure, of in row.items()
            if isinstance(of, dict) and (measure == ZERO_SHOT_OF_STUDY or share_of_labels(measure) is not None)
        ]
        changes = row["changes"] if isinstance(row.get("changes"), dict) else {}
        remarks = (words(row["words"]),) if isinstance(row.get("words"), str) else ()
        out.append(StudyVariant(study, variant, changes, _cost(row), tuple(figures), remarks))
    return out


def _cost(row: Mapping[str, Any]) -> Cost:
    """CPU time of a cell: training, export and scoring."""
    if row.get("floor"):
        return Cost()
    seconds, gflop = row.get("cpu_seconds"), row.get("gflop")
    parameters, trained = (row.get(key) for key in ("parameters", "trained_parameters"))
    return Cost(
        CPU,
        1,
        seconds / 3600 if isinstance(seconds, int | float) else None,
        parameters=parameters if isinstance(parameters, int) else None,
        trained_parameters=trained if isinstance(trained, int) else None,
        gflop=float(gflop) if isinstance(gflop, int | float) else None,
    )


def _figure(folder: Path, table: Mapping[str, Any], row: Mapping[str, Any], measure: str) -> Figure:
    found, study = row[measure], words(table["study"])
    prompts = table.get("prompts")
    task = task_of(words(prompts)) if isinstance(prompts, str) else f"study {study}"
    folds, seeds = [int(fold) for fold in table["folds"]], [int(seed) for seed in table["seeds"]]
    ground = {"protocol": "study", "shards": words(table["shards"]), "folds": ", ".join(map(str, folds))}
    if isinstance(prompts, str):
        ground["prompts" if measure == ZERO_SHOT_OF_STUDY else "labels"] = words(prompts)
    sd, low, high = (found.get(key) for key in ("seed_sd", "low", "high"))
    parts, unpaired = _parts(folder, words(row["variant"]), (folds, seeds), measure, ground["shards"])
    return Figure(
        Column(ZERO_SHOT if measure == ZERO_SHOT_OF_STUDY else PROBE, task, share_of_labels(measure)),
        share_of(found["auroc"]),
        None if sd is None else share_of(sd),
        None if low is None else share_of(low),
        None if high is None else share_of(high),
        len(seeds),
        sum(len(part.truth) for part in parts) or None,
        len(set(np.concatenate([part.patients for part in parts]).tolist())) if parts else None,
        max((int(cell["classes"]) for cell in found.get("by_cell", [])), default=0),
        ground,
        folder,
        seen=NONE,
        parts=parts,
        unpaired=unpaired,
    )


def _parts(
    folder: Path, variant: str, places: tuple[Sequence[int], Sequence[int]], measure: str, shards: str
) -> tuple[tuple[ScoredRecords, ...], str]:
    """Scores of the variant, one entry per fold with all its seeds; () and why where a cell is not there."""
    folds, seeds = places
    parts = []
    for fold in folds:
        cells, missing = [], ""
        for seed in seeds:
            cell = Cell(Variant(variant, "", {}), fold, seed)
            place = next(
                (each for each in (folder / CELLS / cell.name, folder / FLOOR_CELLS / cell.name)
                 if is_plain_name(cell.name) and (each / SCORES).is_file()),
                None,
            )  # fmt: skip
            facts = None if place is None else read_json(place / CELL)
            if place is None or facts is None:
                missing = cell.name
                continue
            try:
                cells.append(read_scores(cell, place, facts, (measure,)))
            except UserError as error:
                return (), error.problem
        if not cells or (missing and variant not in FLOORS):  # a floor without chance has one seed
            return (), f"cell {missing} is not there"
        parts.append(_known(cells, measure, f"{shards} {fold}"))
    return tuple(parts), ""


def _known(cells: Sequence[Outcome], measure: str, where: str) -> ScoredRecords:
    """The scores of a fold, their records known by shards, fold, patients and labels."""
    scored = scored_of(cells, measure)
    content = hashlib.sha256(where.encode())
    content.update("\0".join(map(str, scored.patients)).encode())
    content.update(np.packbits(scored.truth).tobytes())
    return ScoredRecords(
        scored.scores, scored.truth, scored.patients, scored.names, scored.decided, None, content.hexdigest()
    )
