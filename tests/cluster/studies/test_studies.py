"""A study compares variants that differ in the keys it names, goes on where it stopped, and its table is arithmetic."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from cardialign.cluster.studies.cells import (
    CELL,
    MEASURES,
    RUN,
    SCORES,
    SPENT,
    Outcome,
    Setting,
    cells_of,
    config_of,
    finished,
    keep,
    made_of,
    run_cell,
)
from cardialign.cluster.studies.check import check, configs_of
from cardialign.cluster.studies.design import FLOORS, Cell, Design, Variant, load_design, study_names
from cardialign.cluster.studies.floors import floor_cells, run_floors
from cardialign.cluster.studies.table import lines_of, study_table
from cardialign.cluster.studies.work import Work, check_folder
from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.record import EcgRecord, SignalSpec
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.sources.base import Entry
from cardialign.pretrain.benchmarks.counts import count_encoder
from cardialign.pretrain.config import load_config
from cardialign.pretrain.evaluation.zero_shot import evaluate_zero_shot
from cardialign.pretrain.export.loaded import untrained_encoder
from cardialign.pretrain.export.trained_on import TrainedOn, chosen, trained_set
from cardialign.pretrain.export.write import export_encoder
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.run.lock import HeldError, locked_run
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
        ("{name: a, recipe: b, reference: c, variant: {}}", "unknown key variant"),
        ("{name: a, recipe: b, reference: c}", "it has no variants"),
        ("{name: a, recipe: b, reference: c, variants: {untrained: {words: w, set: {}}}}", "called like a floor"),
        ("{name: a, recipe: b, reference: c, variants: {c: {words: w, set: {seed: 2026-01-01}}}}", "dates in quotes"),
        ("{name: a, recipe: b, reference: c, variants: {}}", "variants is empty"),
        ("{name: a, recipe: b, reference: c, variants: {../x: {words: w, set: {}}}}", "variant '../x'"),
        ("{name: a, recipe: b, reference: c, variants: {d: {words: w, set: {}}}}", "none of its variants"),
        ("{name: a, recipe: b, reference: c, variants: {c: {words: w, sett: {}}}}", "unknown key sett"),
        ("{name: a, recipe: b, reference: c, variants: {c: {words: w}}}", "has no `set`; .* write set: {}"),
        ("{name: a, recipe: b, reference: c, variants: {c: {words: 5, set: {}}}}", "needs a text for `words`"),
        ("{name: a, recipe: b, reference: c, variants: {c: {words: w, set: [a]}}}", "needs a mapping for `set`"),
        ("{name: a, recipe: b, reference: c, variants: {c: w}}", "is no mapping of `words` and `set`"),
        (
            "{name: a, recipe: b, reference: c, variants: {c: {words: w, set: {}}, C: {words: w, set: {e.f: 1}}}}",
            "variants c and C would share their folders",
        ),
        ("{name: a, recipe: 1, reference: c, variants: {c: {words: w, set: {}}}}", "are words"),
    ],
)
def test_a_study_that_is_none_is_refused_by_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        load_design(tmp_path / "mine.yaml")


def outcome(
    variant: Variant, fold: int, seed: int, quality: float, measures: tuple[str, ...] = MEASURES, each_patient: int = 2
) -> Outcome:
    generator = np.random.default_rng([fold, seed, round(100 * quality)])
    shared = np.random.default_rng(fold)
    truth = shared.random((80, 2)) < 0.4
    scores = quality * truth + generator.normal(size=truth.shape)
    facts = {"parameters": 10, "cpu_seconds": 1.5}
    patients = np.array([f"f{fold}-p{k // each_patient}" for k in range(80)])
    parts = [dict.fromkeys(measures, part) for part in (scores, truth, patients)]
    return Outcome(Cell(variant, fold, seed), facts, *parts, {key: ["a", "b"] for key in measures})


def floor(name: str, fold: int, seed: int, quality: float) -> Outcome:
    measures = MEASURES if name == "untrained" else ("probe",)
    found = outcome(Variant(name, FLOORS[name], {}), fold, seed, quality, measures)
    return dataclasses.replace(found, facts={**found.facts, "floor": True})


GOOD, BAD = Variant("good", "all", {}), Variant("bad", "less", {"a.b": 1})
MINE = Design("mine", "recipe", "good", (GOOD, BAD))


def test_figures_are_means_over_classes_folds_and_seeds_and_differences_are_paired() -> None:
    outcomes = [
        outcome(each, fold, seed, quality)
        for each, quality in ((GOOD, 2.0), (BAD, 0.5))
        for fold in (1, 2)
        for seed in (0, 1)
    ]
    alone = outcome(GOOD, 1, 2, 2.0)  # a budget ended here: it is in no figure
    table = study_table(MINE, [*outcomes, alone], resamples=40)
    for row, variant in zip(table["rows"], (GOOD, BAD), strict=True):
        own = [each for each in outcomes if each.cell.variant == variant]
        areas = [[roc_auc_score(each.truth["probe"][:, c], each.scores["probe"][:, c]) for c in (0, 1)] for each in own]
        assert row["probe"]["auroc"] == pytest.approx(np.mean(areas), abs=1e-12) and row["cells"] == 4
        seeds = [np.mean([a for a, each in zip(areas, own, strict=True) if each.cell.seed == seed]) for seed in (0, 1)]
        assert row["probe"]["seed_sd"] == pytest.approx(np.std(seeds, ddof=1), abs=1e-12)
        told = {(each["fold"], each["seed"]): each["auroc"] for each in row["probe"]["by_cell"]}
        assert told == {
            (each.cell.fold, each.cell.seed): pytest.approx(np.mean(a), abs=1e-12)
            for each, a in zip(own, areas, strict=True)
        }
    first, second = (row["probe"] for row in table["rows"])
    assert "reference_ahead" not in first
    assert second["reference_ahead"] == pytest.approx(first["auroc"] - second["auroc"], abs=1e-12)
    assert 0 < second["ahead_low"] < second["reference_ahead"] < second["ahead_high"]
    assert table["folds"] == [1, 2] and table["seeds"] == [0, 1]
    with pytest.raises(UserError, match="no fold and seed has all variants"):
        study_table(MINE, outcomes[:4])


def test_a_mistake_of_a_variant_names_it_and_one_of_the_recipe_does_not() -> None:
    wrong = Variant("red", "", {"encoder.colour": "red"})
    design = Design("mine", "cardialign-tiny", "red", (wrong,))
    with pytest.raises(UsageError, match=r"^study mine, variant red: (.|\n)*encoder.colour: unknown key"):
        config_of(design, Cell(wrong, 4, 0), PLACES)
    with pytest.raises(UsageError, match=r"^(?!study)(.|\n)*encoder.size"):
        config_of(design, Cell(wrong, 4, 0), dataclasses.replace(PLACES, overrides=("encoder.size=enormous",)))


def test_a_training_that_was_stopped_costs_both_its_parts(
    four_folds: ShardSet, planted: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(Variant("a", "", {}), 4, 0)
    config = config_of(Design("mine", "cardialign-tiny", "a", (cell.variant,)), cell, planted)
    burn = ["-c", "import sys, time\nwhile time.process_time() < 0.2: pass\nsys.exit(75)"]
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words, **how: start([words[0], *burn], **how))
    for least in (0.2, 0.4):
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, config, planted, tmp_path, four_folds)
        assert json.loads((tmp_path / SPENT).read_text())["cpu_seconds"] >= least


def test_a_training_that_fails_is_told_in_its_own_words_and_with_its_own_remedy(
    four_folds: ShardSet, planted: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(Variant("a", "", {}), 4, 0)
    config = config_of(Design("mine", "cardialign-tiny", "a", (cell.variant,)), cell, planted)
    start = subprocess.Popen
    for said, told in (
        (str(UserError("the disk is full", "free space")), r"failed with code 1: the disk is full\n.*free space; see"),
        ("Killed", r"failed with code 1: Killed\n.*remedy: see"),
        ("", r"failed with code 1: it said nothing\n.*remedy: see"),
    ):
        dying = ["-c", f"import sys; sys.stderr.write({said!r}); sys.exit(1)"]
        monkeypatch.setattr(subprocess, "Popen", lambda words, d=dying, **how: start([words[0], *d], **how))
        with pytest.raises(UserError, match=told):
            run_cell(cell, config, planted, tmp_path / str(len(said)), four_folds)


def paired(outcomes: list[Outcome]) -> tuple[float, ...]:
    row = study_table(MINE, outcomes, resamples=40)["rows"][1]["probe"]
    return tuple(row[key] for key in ("low", "high", "reference_ahead", "ahead_low", "ahead_high"))


def test_the_same_patients_scored_by_more_seeds_are_no_more_patients() -> None:
    once = [outcome(each, fold, 0, quality) for fold in (1, 2) for each, quality in ((GOOD, 2.0), (BAD, 1.0))]
    again = [dataclasses.replace(each, cell=dataclasses.replace(each.cell, seed=1)) for each in once]
    assert paired([*once, *again]) == pytest.approx(paired(once), abs=1e-12)


def test_records_of_one_patient_are_resampled_together() -> None:
    """A patient whose ten records are the same ten times over says what one record says."""
    several = []
    for each, quality in ((GOOD, 2.0), (BAD, 1.0)):
        found = outcome(each, 1, 0, quality, each_patient=1)
        parts = [
            {key: np.repeat(of[key], 10, axis=0) for key in of} for of in (found.scores, found.truth, found.patients)
        ]
        several.append(Outcome(found.cell, found.facts, *parts, found.codes))
    single = [outcome(each, 1, 0, quality, each_patient=1) for each, quality in ((GOOD, 2.0), (BAD, 1.0))]
    assert paired(several) == pytest.approx(paired(single), abs=1e-9)


def test_floors_stand_beside_the_variants_with_what_the_reference_is_ahead_of_them() -> None:
    outcomes = [
        outcome(each, fold, seed, quality)
        for each, quality in ((GOOD, 2.0), (BAD, 0.2))
        for fold in (1, 2)
        for seed in (0, 1)
    ]
    floors = [floor("untrained", fold, seed, 0.3) for fold in (1, 2) for seed in (0, 1)]
    floors += [floor("hand-features", fold, 0, 3.0) for fold in (1, 2)]
    table = study_table(MINE, outcomes, resamples=40, floors=floors)
    rows = {row["variant"]: row for row in table["rows"]}
    assert list(rows) == ["good", "bad", "untrained", "hand-features"]
    assert [rows[name]["floor"] for name in rows] == [False, False, True, True]
    assert "zero_shot" in rows["untrained"] and "zero_shot" not in rows["hand-features"]
    assert rows["untrained"]["probe"]["ahead_low"] > 0 > rows["hand-features"]["probe"]["ahead_high"]
    by_hand = rows["hand-features"]["probe"]
    areas = [
        roc_auc_score(each.truth["probe"][:, c], each.scores["probe"][:, c]) for each in floors[4:] for c in (0, 1)
    ]
    assert by_hand["auroc"] == pytest.approx(np.mean(areas), abs=1e-12) and by_hand["seed_sd"] is None
    assert by_hand["reference_ahead"] == pytest.approx(rows["good"]["probe"]["auroc"] - np.mean(areas), abs=1e-12)
    text = "\n".join(lines_of(table))
    assert "| *hand-features* |" in text
    assert "- probe: the reference is ahead, lower bound above 0, of bad, untrained; not of hand-features" in text
    with_floors, without = table["rows"][1], study_table(MINE, outcomes, resamples=40)["rows"][1]
    assert with_floors == without, "floors change no figure of a variant"


def test_cells_of_other_records_are_not_compared() -> None:
    good, bad = outcome(GOOD, 1, 0, 2.0), outcome(BAD, 1, 0, 1.0)
    moved = {key: of[::-1] for key, of in bad.patients.items()}
    with pytest.raises(UserError, match="good-fold1-seed0 and bad-fold1-seed0 were not scored on the same records"):
        study_table(MINE, [good, dataclasses.replace(bad, patients=moved)], resamples=20)


def test_floors_have_cells_at_the_places_of_the_table_and_hand_features_know_no_seed() -> None:
    cells = [(each.variant.name, each.fold, each.seed) for each in floor_cells([(0, 7), (0, 8), (1, 7), (1, 7)])]
    assert [each for each in cells if each[0] == "hand-features"] == [("hand-features", 7, 0), ("hand-features", 8, 0)]
    for name in ("untrained", "random-kernels"):
        assert [each for each in cells if each[0] == name] == [(name, 7, 0), (name, 8, 0), (name, 7, 1)]


@pytest.mark.parametrize(
    ("key", "told"),
    [("data.folds=[1, 2, 3, 4]", "data.folds"), ("seed=7", "seed"), ("data.split=train", "data.split")],
)
def test_no_variant_and_no_override_changes_what_the_study_decides(key: str, told: str) -> None:
    cell = Cell(Variant("cheat", "", {}), 4, 0)
    design = Design("mine", "cardialign-tiny", "cheat", (cell.variant,))
    with pytest.raises(UsageError, match=f"variant cheat: {told} is .* and the study decides it"):
        config_of(design, cell, dataclasses.replace(PLACES, overrides=(key,)))
    name, _, value = key.partition("=")
    within = dataclasses.replace(
        cell, variant=Variant("cheat", "", {name: json.loads(json.dumps(yaml.safe_load(value)))})
    )
    with pytest.raises(UsageError, match=f"variant cheat: {told} is"):
        config_of(design, within, PLACES)


class FourFolds(PlantedSource):
    def read(self, entry: Entry) -> EcgRecord:
        return dataclasses.replace(super().read(entry), fold=1 + (entry.meta["k"] // RECORDS_PER_PATIENT) % 4)


@pytest.fixture(scope="module")
def four_folds(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("study")
    made = build_shards(FourFolds(folder, 160), folder / "shards", SetPlan(SignalSpec(100, 5)), workers=1)
    return ShardSet.open(made.path)


@pytest.fixture
def planted(four_folds: ShardSet, tmp_path: Path) -> Setting:
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    return Setting(four_folds.path, str(tmp_path / "prompts.yaml"), "finding", (1, 2, 3, 4))


def checked(
    setting: Setting, shards: ShardSet, variants: tuple[Variant, ...], test: int = 4, recipe: str = "cardialign-tiny"
) -> dict[int, int]:
    design = Design("mine", recipe, variants[0].name, variants)
    cells = cells_of(design, [test], 1)
    return check(design, cells, configs_of(design, cells, setting), setting, shards)


def test_what_cannot_be_scored_is_said_before_anything_is_trained(four_folds: ShardSet, planted: Setting) -> None:
    one = (Variant("a", "", {}),)
    assert checked(planted, four_folds, one) == {4: 0}, "no patient of fold 4 is in another"
    with pytest.raises(UsageError, match="method simclr reads no reports"):
        checked(planted, four_folds, one, recipe="simclr-tiny")
    with pytest.raises(DataError, match="fold"):
        checked(dataclasses.replace(planted, folds=(1, 2, 3, 9)), four_folds, one, test=9)
    with pytest.raises(UsageError, match="variants a and b train the same"):
        checked(planted, four_folds, (*one, Variant("b", "", {"optimizer.lr": 1e-3})))
    with pytest.raises(UsageError, match="variants a and b train the same"):
        checked(planted, four_folds, (*one, Variant("b", "", {"name": "another-name"})))
    rare = PROMPTS.replace("  UP:", "  RARER:").replace("  DOWN:", "  RAREST:").replace("  FAST:", "  GONE:")
    Path(planted.prompts).write_text(rare + '  NEVER: {name: N, prompts: ["Never"]}\n')
    with pytest.raises(UsageError, match="no code of prompt set planted-v1 occurs"):
        checked(planted, four_folds, one)


def export_that_saw(shards: ShardSet, folds: tuple[int, ...], out: Path, seed: int = 0) -> Path:
    config = load_config("cardialign-tiny", [f"data.shards={shards.path}"])
    torch.manual_seed(seed)
    weights = create_method(config, shards.spec).state_dict()
    seen = TrainedOn((trained_set(shards, shards.select(folds=folds).rows, chosen(folds, None)),))
    return export_encoder(config, weights, out, training={"steps": 1}, spec=shards.spec, program=False, trained_on=seen)


def test_a_start_that_has_seen_the_fold_kept_out_is_refused_before_anything_is_trained(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    plain, clean = Variant("plain", "", {}), export_that_saw(four_folds, (1, 2, 3), tmp_path / "clean")
    saw = export_that_saw(four_folds, (3, 4), tmp_path / "saw")
    from_clean, from_saw = (Variant("started", "", {"init_from": str(each)}) for each in (clean, saw))
    assert checked(planted, four_folds, (plain, from_clean)) == {4: 0}
    with pytest.raises(
        UsageError, match=r"variant started: init_from .*saw has seen what fold 4 is tested on: 35 of 35"
    ):
        checked(planted, four_folds, (plain, from_saw))
    with pytest.raises(UserError, match="no run directory, no checkpoint and no exported encoder"):
        checked(planted, four_folds, (plain, Variant("lost", "", {"init_from": str(tmp_path / "absent")})))


def test_a_start_that_was_trained_anew_makes_other_cells(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    cell = Cell(Variant("a", "", {"init_from": str(export_that_saw(four_folds, (1,), tmp_path / "start"))}), 4, 0)
    config = config_of(Design("mine", "cardialign-tiny", "a", (cell.variant,)), cell, planted)
    before = made_of(config, planted, four_folds)
    shutil.rmtree(tmp_path / "start")
    export_that_saw(four_folds, (1,), tmp_path / "start", seed=1)
    assert made_of(config, planted, four_folds) != before


def test_an_edited_file_of_prompts_makes_other_cells(four_folds: ShardSet, planted: Setting) -> None:
    cell = Cell(Variant("a", "", {}), 4, 0)
    config = config_of(Design("mine", "cardialign-tiny", "a", (cell.variant,)), cell, planted)
    before = made_of(config, planted, four_folds)
    Path(planted.prompts).write_text(PROMPTS.replace("Upright deflections", "Upwards"))
    assert made_of(config, planted, four_folds) != before


@pytest.mark.slow
def test_floors_are_those_of_the_product_are_kept_and_belong_to_their_records(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    design = Design("mine", "cardialign-tiny", "a", (Variant("a", "", {}),))
    found = run_floors(design, [(0, 4), (1, 4)], planted, tmp_path / "floors", four_folds)
    areas = {
        (each.cell.variant.name, each.cell.seed, measure): np.mean(
            [roc_auc_score(each.truth[measure][:, c], each.scores[measure][:, c]) for c in range(3)]
        )
        for each in found
        for measure in each.scores
    }
    kinds = [("untrained", "zero_shot"), ("untrained", "probe"), ("random-kernels", "probe")]
    assert set(areas) == {(*kind[:1], seed, kind[1]) for kind in kinds for seed in (0, 1)} | {
        ("hand-features", 0, "probe")
    }
    for seed in (0, 1):
        config = config_of(design, Cell(design.variants[0], 4, seed), planted)
        fresh = untrained_encoder(config, four_folds.spec, seed)
        same = evaluate_zero_shot(fresh, four_folds, prompts=planted.prompts, folds=[4], bootstrap=2)
        assert areas["untrained", seed, "zero_shot"] == pytest.approx(same.macro, abs=1e-6)
    assert areas["untrained", 0, "probe"] != areas["untrained", 1, "probe"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "floors").rglob("*.*")}
    again = run_floors(design, [(0, 4), (1, 4)], planted, tmp_path / "floors", four_folds)
    assert [each.facts for each in again] == [each.facts for each in found] and len(times) == 10
    assert times == {path: path.stat().st_mtime_ns for path in times}, "a finished floor is not made again"
    with pytest.raises(UserError, match="holds a cell of another study"):
        run_floors(design, [(0, 4)], dataclasses.replace(planted, folds=(1, 2, 4)), tmp_path / "floors", four_folds)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_from_the_command_line_goes_on_where_it_stopped(
    cardialign: Call, four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    words = ["study", "parts", "--shards", four_folds.path, "--out", tmp_path / "out", "--prompts", planted.prompts]
    words += ["--folds", "1-4", "--test-folds", "4", "--seeds", 1, "--only", "before", "--bootstrap", 20]
    words += ["--set", "training.steps=2", "--set", "training.epochs=null", "--set", "training.global_batch=16"]
    short = cardialign(*words, "--budget-hours", 0.0001)
    assert short.code != 0 and "no fold and seed has all variants" in short.err
    first = tmp_path / "out" / "cells" / "all-fold4-seed0"
    kept = {name: (first / name).stat().st_mtime_ns for name in (CELL, SCORES)}
    whole = cardialign(*words, "--budget-hours", 0.0001, "--no-floors")
    assert whole.code == 0, whole.err  # what is there costs nothing
    assert [row["variant"] for row in whole.json["rows"]] == ["all", "before"]
    floored = cardialign(*words)
    result = json.loads((tmp_path / "out" / "table.json").read_text())
    assert floored.code == 0 and result["cells"] == 2
    assert [row["variant"] for row in result["rows"]] == ["all", "before", *FLOORS]
    assert kept == {name: (first / name).stat().st_mtime_ns for name in kept}, "a finished cell is not made again"
    assert not (first / "run").exists()
    other = cardialign(*words, "--set", "optimizer.lr=1e-4")
    assert other.code != 0 and "holds a cell of another study" in other.err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_on_one_folder_share_the_cells_and_the_last_one_has_the_whole_table(
    cardialign: Call, four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    words = ["study", "parts", "--shards", four_folds.path, "--prompts", planted.prompts, "--folds", "1-4", "--json"]
    words += ["--test-folds", "4", "--seeds", 2, "--only", "before", "--bootstrap", 20, "--out", tmp_path / "shared"]
    words += ["--set", "training.steps=2", "--set", "training.epochs=null", "--set", "training.global_batch=16"]
    command = [sys.executable, "-m", "cardialign", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPROFILEIMPORTTIME": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen(command, text=True, env=environment, **pipes) for _ in range(3)]
    ended = [process.communicate() for process in started]
    said = [out.splitlines()[-1] for out, _ in ended]
    assert [process.returncode for process in started] == [0, 0, 0], said
    imported = {line.split("|")[2].strip() for _, told in ended for line in told.splitlines() if line.count("|") == 2}
    assert "torch" in imported and not {"ray", "mlflow"} & imported, "neither Ray nor a tracking store is needed"
    trainings = {path.parent.name: path.read_text() for path in tmp_path.rglob("training.log")}
    assert len(trainings) == 4 and all(each.count('"final_loss"') == 1 for each in trainings.values()), "each cell once"
    whole = [json.loads(each) for each in said if len(json.loads(each)["rows"]) == 2 + len(FLOORS)]
    assert whole and whole[-1]["cells"] == 4, "the last one has all cells, and the floors"
    table = json.loads((tmp_path / "shared" / "table.json").read_text())
    alone = cardialign(*[word for word in words[:-6] if word != "--json"][:-1], tmp_path / "alone", *words[-6:])
    free = [[{**row, "cpu_seconds": 0} for row in each["rows"]] for each in (table, alone.json)]
    assert free[0] == free[1], "who makes a cell changes no figure"


def test_a_folder_of_something_else_is_not_strewn_with_cells(four_folds: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds something, and no study"):
        check_folder(four_folds.path)
    (tmp_path / "cells").mkdir()
    for folder in (tmp_path, tmp_path / "cells", tmp_path / "absent"):
        check_folder(folder)


def test_a_cell_that_another_process_holds_is_left_to_it(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    variant = Variant("a", "", {})
    design, cells = Design("mine", "cardialign-tiny", "a", (variant,)), [Cell(variant, 4, seed) for seed in (0, 1)]
    work = Work(design, cells, planted, four_folds, tmp_path, configs_of(design, cells, planted))
    assert work.held() == [] and work.there() == []
    with contextlib.ExitStack() as others:
        for cell in cells:
            others.enter_context(locked_run(tmp_path / "cells" / cell.name))
        assert list(work.make()) == [] and work.held() == cells
        with pytest.raises(HeldError, match=r"a-fold4-seed0 is in use by process"):
            run_cell(cells[0], work.configs[cells[0].name], planted, tmp_path / "cells" / cells[0].name, four_folds)
    assert work.held() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_is_ended_leaves_a_checkpoint_and_the_same_command_goes_on_from_it(
    four_folds: ShardSet, planted: Setting, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, recipe: cardialign-tiny, reference: a, variants: {a: {words: w, set: {}}}}"
    )
    words = ["study", tmp_path / "mine.yaml", "--shards", four_folds.path, "--out", tmp_path / "out", "--no-floors"]
    words += ["--prompts", planted.prompts, "--folds", "1-4", "--test-folds", "4", "--seeds", 1, "--bootstrap", 20]
    words += ["--set", "training.steps=30", "--set", "training.epochs=null", "--set", "training.global_batch=16"]
    command = [sys.executable, "-m", "cardialign", *map(str, words)]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    cell = tmp_path / "out" / "cells" / "a-fold4-seed0"
    deadline = time.monotonic() + 240
    while not (cell / RUN / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    started.send_signal(number)
    told = started.communicate()[1]
    assert started.returncode == (128 + number if number == signal.SIGTERM else -number), told  # as a shell has it
    while True:  # the training has the cell until it has come to its checkpoint
        with contextlib.suppress(HeldError), locked_run(cell):
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (cell / CELL).exists() and list((cell / RUN).rglob("step-*")), "a checkpoint, and no figures"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trained = json.loads((cell / "training.log").read_text().strip().splitlines()[-1])
    assert trained["resumed_from"] > 0 and trained["steps"] == 30


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cells_as_ray_tasks_have_the_figures_of_cells_one_after_the_other(
    cardialign: Call, four_folds: ShardSet, planted: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["study", "parts", "--shards", four_folds.path, "--prompts", planted.prompts, "--folds", "1-4"]
    words += ["--test-folds", "4", "--seeds", 1, "--only", "before", "--bootstrap", 20, "--no-floors"]
    words += ["--set", "training.steps=2", "--set", "training.epochs=null", "--set", "training.global_batch=16"]
    there = cardialign(*words, "--out", tmp_path / "ray", "--workers", 2)
    assert there.code == 0, there.err
    here = cardialign(*words, "--out", tmp_path / "here")
    figures = [[{**row, "cpu_seconds": 0} for row in each.json["rows"]] for each in (there, here)]
    assert figures[0] == figures[1] and there.json["cells"] == 2
    assert not list((tmp_path / "ray").rglob(".alive"))


def test_a_training_of_another_study_that_was_stopped_is_left_as_it_is(
    four_folds: ShardSet, planted: Setting, tmp_path: Path
) -> None:
    cell = Cell(Variant("a", "", {}), 4, 0)
    config = config_of(Design("mine", "cardialign-tiny", "a", (cell.variant,)), cell, planted)
    (tmp_path / "cell" / "run").mkdir(parents=True)
    (tmp_path / "cell" / "recipe.yaml").write_text("{}")
    with pytest.raises(UserError, match="holds an unfinished training of another study"):
        run_cell(cell, config, planted, tmp_path / "cell", four_folds)
    assert (tmp_path / "cell" / "recipe.yaml").read_text() == "{}"


def test_a_record_that_leaves_a_class_open_is_not_scored_for_it(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    truth, scores = draw.random((60, 2)) < 0.4, draw.normal(size=(60, 2))
    decided = np.ones_like(truth)
    decided[:20, 0] = False
    patients = np.array([str(k) for k in range(60)])
    cells = []
    for name, shift in (("a", 0.0), ("b", 0.1)):
        values = {"zero_shot": scores + shift * draw.normal(size=scores.shape), "probe": scores}
        found = Outcome(
            Cell(Variant(name, "", {}), 1, 0), {"parameters": 1, "cpu_seconds": 1.0}, values,
            dict.fromkeys(MEASURES, truth), dict.fromkeys(MEASURES, patients), {key: ["x", "y"] for key in MEASURES},
            {"zero_shot": decided},
        )  # fmt: skip
        cells.append(keep(dataclasses.replace(found, facts={**found.facts, "made_from": name}), tmp_path / name))
        again = finished(found.cell, tmp_path / name, name)
        assert (
            again is not None and np.array_equal(again.decided["zero_shot"], decided) and "probe" not in again.decided
        )
    design = Design("mine", "r", "a", tuple(each.cell.variant for each in cells))
    row = study_table(design, cells, 10)["rows"][0]
    areas = [roc_auc_score(truth[20:, 0], scores[20:, 0]), roc_auc_score(truth[:, 1], scores[:, 1])]
    assert row["zero_shot"]["auroc"] == pytest.approx(np.mean(areas), abs=1e-12)
    everything = [roc_auc_score(truth[:, c], scores[:, c]) for c in range(2)]
    assert row["probe"]["auroc"] == pytest.approx(np.mean(everything), abs=1e-12)


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


GFLOP = {"small": 9.765, "small-short": 9.765, "base": 21.257, "xl": 221.911}
"""Of one record of 10 s at 500 Hz, forward: the table of `pretrain/METHODS.md`, to one digit more."""


def test_sizes_are_compared_at_equal_compute() -> None:
    design = load_design("sizes")
    configs = {each.name: config_of(design, Cell(each, 4, 0), PLACES) for each in design.variants}
    spent = {name: (config.training.steps or 0) * GFLOP[name] for name, config in configs.items()}
    assert {config.training.global_batch for config in configs.values()} == {64}
    assert spent["base"] == pytest.approx(spent["small"], rel=0.01)
    assert spent["xl"] == pytest.approx(spent["small"], rel=0.01)
    assert configs["small-short"].training.steps == configs["base"].training.steps


@pytest.mark.slow
def test_the_flops_of_the_sizes_are_those_counted() -> None:
    design, spec = load_design("sizes"), SignalSpec(500, 10)
    counted = {
        each.name: count_encoder(config_of(design, Cell(each, 4, 0), PLACES).encoder, spec)[1]
        for each in design.variants
    }
    assert counted == {name: pytest.approx(each * 1e9, rel=1e-4) for name, each in GFLOP.items()}
