"""A study compares variants that differ in the keys it names, goes on where it stopped, and its table is arithmetic."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cardialign.cluster.studies.cells import CELL, MEASURES, SCORES, Outcome, Setting, cells_of, config_of, finished
from cardialign.cluster.studies.design import Cell, Design, Variant, load_design, study_names
from cardialign.cluster.studies.table import lines_of, study_table
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.sources.base import Entry
from tests.cluster.conftest import Answer
from tests.support.planted_source import PROMPTS, RECORDS_PER_PATIENT, PlantedSource

Call = Callable[..., Answer]
PLACES = Setting(Path("/absent"), "ptb-xl-super-v2", "super", (1, 2, 3, 4))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and key not in ("lead_groups",)
        out |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


@pytest.mark.parametrize("name", study_names())
def test_every_variant_differs_from_the_recipe_in_the_keys_it_names_and_in_no_other(name: str) -> None:
    design = load_design(name)
    whole = Design(name, design.recipe, "x", (Variant("x", "", {}),))
    plain = flat(config_of(whole, Cell(whole.variants[0], 4, 0), PLACES).resolved())
    for variant in design.variants:
        changed = flat(config_of(design, Cell(variant, 4, 0), PLACES).resolved())
        differing = {key for key in plain.keys() | changed.keys() if plain.get(key) != changed.get(key)}
        meant = {key for key in variant.changes if variant.changes[key] is not None}
        sections = tuple(f"{key}." for key in variant.changes if variant.changes[key] is None)
        assert {key for key in differing if not key.startswith(sections or "-")} - set(variant.changes) == set()
        assert meant <= differing, f"{variant.name} says that it changes {meant - differing}, and does not"


def test_the_ablations_are_those_of_the_plan() -> None:
    design = load_design("ablations")
    assert [variant.name for variant in design.variants] == ["A1", "A2", "A3", "A4", "A5"] and design.reference == "A5"
    groups, scales, diagsim = "encoder.lead_groups", "encoder.patches", "method.weighting"
    off = {
        variant.name: {key for key in (groups, scales, diagsim) if key in variant.changes}
        for variant in design.variants
    }
    assert off == {"A1": {groups, scales, diagsim}, "A2": {groups}, "A3": {scales}, "A4": {diagsim}, "A5": set()}


def test_the_fold_kept_out_is_in_no_training_and_the_one_before_it_chooses() -> None:
    assert PLACES.training(2) == [1, 3, 4] and PLACES.validation(2) == 1
    assert PLACES.validation(1) == 4, "in a circle"
    for folds, test in (((1, 2), 2), ((1, 2, 3), 7)):
        with pytest.raises(UsageError, match=f"fold {test} cannot be kept out"):
            dataclasses.replace(PLACES, folds=folds).training(test)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a", "not a mapping"),
        ("{name: a, recipe: b, reference: c, variants: {}}", "variants is empty"),
        ("{name: a, recipe: b, reference: c, variants: {../x: {words: w, set: {}}}}", "variant '../x'"),
        ("{name: a, recipe: b, reference: c, variants: {d: {words: w, set: {}}}}", "none of its variants"),
        ("{name: a, recipe: 1, reference: c, variants: {c: {words: w, set: {}}}}", "are words"),
    ],
)
def test_a_study_that_is_none_is_refused_by_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        load_design(tmp_path / "mine.yaml")


def outcome(variant: Variant, fold: int, seed: int, quality: float) -> Outcome:
    generator = np.random.default_rng([fold, seed, round(100 * quality)])
    shared = np.random.default_rng(fold)
    truth = shared.random((80, 2)) < 0.4
    scores = quality * truth + generator.normal(size=truth.shape)
    same = dict.fromkeys(("zero_shot", "probe"))
    facts = {"parameters": 10, "cpu_seconds": 1.5}
    patients = np.array([f"p{k // 2}" for k in range(80)])
    parts = [dict.fromkeys(same, part) for part in (scores, truth, patients)]
    return Outcome(Cell(variant, fold, seed), facts, *parts, {"zero_shot": ["a", "b"], "probe": ["a", "b"]})


def test_figures_are_means_over_classes_folds_and_seeds_and_differences_are_paired() -> None:
    good, bad = Variant("good", "all", {}), Variant("bad", "less", {"a.b": 1})
    design = Design("mine", "recipe", "good", (good, bad))
    outcomes = [
        outcome(each, fold, seed, quality)
        for each, quality in ((good, 2.0), (bad, 0.5))
        for fold in (1, 2)
        for seed in (0, 1)
    ]
    alone = outcome(good, 1, 2, 2.0)  # a budget ended here: it is in no figure
    table = study_table(design, [*outcomes, alone], resamples=200)
    for row, variant in zip(table["rows"], (good, bad), strict=True):
        own = [each for each in outcomes if each.cell.variant == variant]
        areas = [[roc_auc_score(each.truth["probe"][:, c], each.scores["probe"][:, c]) for c in (0, 1)] for each in own]
        assert row["probe"]["auroc"] == pytest.approx(np.mean(areas), abs=1e-12) and row["cells"] == 4
        seeds = [np.mean([a for a, each in zip(areas, own, strict=True) if each.cell.seed == seed]) for seed in (0, 1)]
        assert row["probe"]["seed_sd"] == pytest.approx(np.std(seeds, ddof=1), abs=1e-12)
    first, second = (row["probe"] for row in table["rows"])
    assert "less_reference" not in first
    assert second["less_reference"] == pytest.approx(second["auroc"] - first["auroc"], abs=1e-12)
    assert second["less_low"] < second["less_reference"] < second["less_high"] < 0
    assert len(lines_of(table)) == 4 and "bad" in lines_of(table)[3]
    with pytest.raises(UserError, match="no fold and seed has all variants"):
        study_table(design, outcomes[:4])


class FourFolds(PlantedSource):
    def read(self, entry: Entry) -> EcgRecord:
        return dataclasses.replace(super().read(entry), fold=1 + (entry.meta["k"] // RECORDS_PER_PATIENT) % 4)


@pytest.mark.slow
def test_a_study_from_the_command_line_goes_on_where_it_stopped(cardialign: Call, tmp_path: Path) -> None:
    shards = build_shards(FourFolds(tmp_path, 160), tmp_path / "shards", SetPlan(SignalSpec(100, 5)), workers=1).path
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    words = ["study", "parts", "--shards", shards, "--out", tmp_path / "out", "--prompts", tmp_path / "prompts.yaml"]
    words += ["--folds", "1-4", "--test-folds", "4", "--seeds", 1, "--only", "before", "--bootstrap", 20]
    words += ["--set", "training.steps=2", "--set", "training.epochs=null", "--set", "training.global_batch=16"]
    short = cardialign(*words, "--budget-hours", 0.0001)
    assert short.code != 0 and "no fold and seed has all variants" in short.err
    first = tmp_path / "out" / "cells" / "all-fold4-seed0"
    kept = {name: (first / name).stat().st_mtime_ns for name in (CELL, SCORES)}
    whole = cardialign(*words)
    assert whole.code == 0, whole.err
    result = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["variant"] for row in result["rows"]] == ["all", "before"] and result["cells"] == 2
    assert kept == {name: (first / name).stat().st_mtime_ns for name in kept}, "a finished cell is not made again"
    assert not (first / "run").exists()
    other = cardialign(*words, "--set", "optimizer.lr=1e-4")
    assert other.code != 0 and "holds a cell of another study" in other.err


def test_scores_that_are_not_those_of_their_cell_are_refused(tmp_path: Path) -> None:
    cell = Cell(Variant("a", "", {}), 1, 0)
    arrays = {f"{part}_{each}": np.zeros(2) for part in ("scores", "truth", "patients", "codes") for each in MEASURES}
    np.savez(tmp_path / SCORES, **arrays)
    digest = hashlib.sha256((tmp_path / SCORES).read_bytes()).hexdigest()
    (tmp_path / CELL).write_text(json.dumps({"made_from": "this", "scores": digest}))
    assert finished(cell, tmp_path, "this") is not None and finished(cell, tmp_path / "absent", "this") is None
    with pytest.raises(UserError, match="a cell of another study"):
        finished(cell, tmp_path, "that")
    np.savez(tmp_path / SCORES, **{**arrays, "scores_probe": np.ones(2)})
    with pytest.raises(UserError, match="not the one that the cell was scored with"):
        finished(cell, tmp_path, "this")


def test_cells_come_seed_by_seed() -> None:
    design = load_design("ablations").only(["A1"])
    names = [cell.name for cell in cells_of(design, (7, 8), 2)]
    assert names[:4] == ["A1-fold7-seed0", "A5-fold7-seed0", "A1-fold8-seed0", "A5-fold8-seed0"] and len(names) == 8
    with pytest.raises(UsageError, match=r"study ablations has no variant 'A9'"):
        load_design("ablations").only(["A9"])
