"""What remains of a cell: its scores and its figures, in its folder, bound to each other, or that its training
collapsed; and what all cells share.

A training that the collapse alarm ended is an outcome that the table names. It is kept, and not tried until it
succeeds: a seed that got several chances would make its variant look better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.cluster.studies import missing
from cardialign.cluster.studies.design import Cell
from cardialign.cluster.studies.measures import MEASURES, of_labels
from cardialign.cluster.studies.origin import Origin, of_another_study
from cardialign.data_shards.array_files import load_arrays
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.files import commit_file, read_json, sha256_of, write_json

CELL, SCORES = "cell.json", "scores.npz"
COSTS = ("cpu_seconds", "parameters")
"""Numbers that every cell says."""


@dataclass(frozen=True)
class Setting:
    """What all cells share: the shard set, the prompts (and their label set), the folds that exist, further overrides
    of the recipe; missingness: scored with leads and time missing, too; measures: what each is scored by (`measures`);
    records: how many each sees in training, None = as its recipe says."""

    shards: Path
    prompts: str
    label_set: str
    folds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    missingness: bool = False
    measures: tuple[str, ...] = MEASURES
    records: int | None = None

    def training(self, test: int) -> list[int]:
        """The folds that the encoder is pretrained on, and the probe learns from: all but the one kept out.

        Raises UsageError where too few are left: the probe chooses its penalty on one of them.
        """
        rest, known = [fold for fold in self.folds if fold != test], ", ".join(map(str, self.folds))
        if test not in self.folds:
            raise UsageError(f"fold {test} cannot be kept out of folds {known}", "name one of these in --test-folds")
        if len(rest) < 2:
            raise UsageError(
                f"fold {test} cannot be kept out of folds {known}",
                "at least two other folds must be left to learn from and to choose on: give more --folds",
            )
        return rest

    def measures_of(self, cell: Cell) -> tuple[str, ...]:
        """What a cell is scored by."""
        return self.measures if cell.variant.supervised is None else of_labels(self.measures)

    def validation(self, test: int) -> int:
        """The fold before the one kept out, in a circle."""
        rest = self.training(test)
        return max([fold for fold in rest if fold < test] or rest)


@dataclass(frozen=True)
class Outcome:
    """Scores of a cell on its fold, per measure: scores (n, C), truth bool (n, C), patients (n,), class codes (C,).

    decided bool (n, C): a class is scored over these records; of a measure that is not in it, over all. A floor without
    words has no zero-shot measure.
    """

    cell: Cell
    facts: dict[str, Any]
    scores: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    patients: dict[str, np.ndarray]
    codes: dict[str, list[str]]
    decided: dict[str, np.ndarray] = field(default_factory=dict)


def finished(cell: Cell, folder: Path, wanted: Origin, measures: Sequence[str] = MEASURES) -> Outcome | None:
    """A cell that was made from `wanted`; None when it is not there.

    Raises UserError for one that was made from something else: nothing is replaced.
    """
    facts = read_json(folder / CELL)
    if facts is None:
        return None
    if not isinstance(facts, dict) or not wanted.is_of(folder, facts.get("made_from")):
        raise of_another_study(folder, "a cell")
    return read_scores(cell, folder, facts, measures)


def check_costs(found: Outcome, folder: Path) -> Outcome:
    """The outcome, where it says what a table of the study says. Raises UserError."""
    if absent := [key for key in COSTS if key not in found.facts]:
        raise _without(folder, absent[0])
    return found


def _without(folder: Path, key: str) -> UserError:
    return UserError(f"{folder / CELL} does not say its {key}", "delete the folder: the cell is made anew")


def read_scores(cell: Cell, folder: Path, facts: dict[str, Any], measures: Sequence[str] = MEASURES) -> Outcome:
    """The scores in a cell's folder, bound to its facts. Raises UserError when they are not as they were written."""
    if wrong := [key for key in COSTS if key in facts and number_from_0(facts[key]) is None]:
        raise _without(folder, wrong[0])
    try:
        if sha256_of(folder / SCORES) != facts.get("scores"):
            raise ValueError("it is not the one that the cell was scored with")
        kept = load_arrays(folder / SCORES)
        measures = [*measures, *(each for each in missing.MEASURES if f"scores_{each}" in kept)]
        arrays = {
            part: {measure: kept[f"{part}_{measure}"] for measure in measures}
            for part in ("scores", "truth", "patients", "codes")
        }
        decided = {each: kept[f"decided_{each}"] for each in measures if f"decided_{each}" in kept}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder / SCORES} cannot be read: {error}", "delete the folder: the cell is made anew"
        ) from None
    codes = {measure: [str(code) for code in arrays["codes"][measure]] for measure in measures}
    return Outcome(cell, facts, arrays["scores"], arrays["truth"], arrays["patients"], codes, decided)


def number_from_0(value: Any) -> float | None:
    """A number from 0 on, out of a file that anybody may have written; None for anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15
    return float(value) if known else None


def keep(found: Outcome, folder: Path) -> Outcome:
    """Write scores and figures of a cell: those bound to these, and these last."""
    parts = (
        ("scores", found.scores), ("truth", found.truth), ("patients", found.patients), ("codes", found.codes),
        ("decided", found.decided),
    )  # fmt: skip
    arrays: dict[str, Any] = {
        f"{part}_{measure}": np.asarray(values) for part, of in parts for measure, values in of.items()
    }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    folder.mkdir(parents=True, exist_ok=True)
    commit_file(folder / SCORES, write)
    facts = {**found.facts, "scores": sha256_of(folder / SCORES)}
    write_json(folder / CELL, facts, indent=1)
    return replace(found, facts=facts)


NOT_LEARNT = "not_learnt.json"


class NotLearnt(UserError):  # noqa: N818  (an outcome of a cell, which its study goes on after)
    """The collapse alarm ended the training of a cell."""


def write_not_learnt(folder: Path, made_from: str, error: NotLearnt) -> None:
    """Keep what the alarm said beside the digest of what the cell follows from."""
    write_json(
        folder / NOT_LEARNT, {"made_from": made_from, "problem": error.problem, "remedy": error.remedy}, indent=1
    )


def not_learnt(folder: Path, origin: Origin) -> NotLearnt | None:
    """What ended the cell in `folder` when it was last made from the same; None where nothing did."""
    kept = read_json(folder / NOT_LEARNT)
    if not isinstance(kept, dict) or not origin.is_of(folder, kept.get("made_from")):
        return None
    return NotLearnt(str(kept.get("problem", ""))[:500], str(kept.get("remedy", ""))[:500])


def refuse_not_learnt(folder: Path, origin: Origin) -> None:
    """Raises NotLearnt for a cell that collapsed before."""
    if (error := not_learnt(folder, origin)) is not None:
        raise error
