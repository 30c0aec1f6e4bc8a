"""What a study compares is what it names, and its table is arithmetic."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from cardialign.cluster.studies.cells import config_of
from cardialign.cluster.studies.check import check, configs_of
from cardialign.cluster.studies.design import FLOORS, Cell, Design, Variant, cells_of, load_design, study_names
from cardialign.cluster.studies.floors import floor_cells
from cardialign.cluster.studies.measures import MEASURES
from cardialign.cluster.studies.origin import Origin
from cardialign.cluster.studies.outcome import Outcome, Setting, finished, keep
from cardialign.cluster.studies.table import lines_of, study_table
from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.benchmarks.counts import count_encoder
from cardialign.pretrain.config import load_config, recipe_names
from cardialign.pretrain.evaluation.probing.tuned import encoder_section
from cardialign.pretrain.methods.base import method_class
from tests.support.readme import OTHER_METHODS, block_with

PLACES = Setting(Path("/absent"), "ptb-xl-super-v2", "super", (1, 2, 3, 4))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and key not in ("lead_groups", "lead_masking")
        out |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


@pytest.mark.parametrize("name", study_names())
def test_every_variant_differs_from_the_recipe_in_the_keys_it_names_and_in_no_other(name: str) -> None:
    design = load_design(name)
    for variant in design.variants:
        if variant.supervised is not None:
            continue
        itself = dataclasses.replace(variant, changes={}, first=None)
        alone = dataclasses.replace(design, variants=(itself,), records=None)
        plain = flat(config_of(alone, Cell(itself, 4, 0), PLACES).resolved())
        changed = flat(config_of(design, Cell(variant, 4, 0), PLACES).resolved())
        if design.records is not None:  # how long a training is follows from them
            changed |= {key: plain[key] for key in ("training.steps", "training.epochs")}
        differing = {key for key in plain.keys() | changed.keys() if plain.get(key) != changed.get(key)}
        whole = {key for key, value in variant.changes.items() if value is None or (key == "encoder" and value)}
        meant = variant.changes.keys() - whole
        sections = tuple(f"{key}." for key in whole)
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


def test_the_methods_have_recipes_that_exist_and_see_as_many_of_the_same_records() -> None:
    """Every recipe of minutes that is no other size of the main one stands in the table of methods."""
    design = load_design("methods")
    recipes = {design.recipe_of(variant) for variant in design.variants}
    assert recipes <= set(recipe_names())
    configs = [config_of(design, Cell(each, 4, 0), PLACES) for each in design.variants]
    assert {each.training.global_batch * (each.training.steps or 0) for each in configs} == {16768}
    assert {tuple(each.data.folds or ()) for each in configs} == {(1, 2, 3)}
    assert len({each.method.name for each in configs}) == len(configs), "one row a method"
    learning = {
        name for name in recipe_names()
        if method_class(load_config(name)).reports and "published" not in name and not name.startswith("cardialign")
    }  # fmt: skip
    assert {name for name in learning if "stage-2" not in name} <= recipes, "a method without a row"


SIGNAL_ONLY = {
    "simclr", "byol", "barlow_twins", "moco_v3", "simsiam", "ts_tcc", "clocs", "astcl", "wav2vec2_cmsc", "crt",
    "st_mem", "heartlang", "jepa", "cpc",
}  # fmt: skip
"""The signal-only rows of the brief's comparison table and the two that now lead; ECG-FM is `wav2vec2_cmsc`, larger."""


def test_the_study_of_the_documentation_is_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(block_with("reference: soft", "yaml", OTHER_METHODS))
    design = load_design(tmp_path / "mine.yaml")
    setting = dataclasses.replace(PLACES, measures=design.measures, records=design.records)
    configs = configs_of(design, [Cell(each, 4, 0) for each in design.variants], setting)
    temperatures = [configs[f"{name}-fold4-seed0"].resolved()["method"]["temperature"] for name in ("soft", "hard")]
    assert temperatures == [0.1, 0.07] and len(configs) == 3 and design.measures[-1] == "fresh"


def test_the_baselines_have_every_row_of_the_published_table_on_equal_terms() -> None:
    design = load_design("baselines")
    cells = [Cell(each, 4, 0) for each in design.variants]
    configs = configs_of(design, cells, dataclasses.replace(PLACES, measures=design.measures))
    methods = {each.method.name for each in configs.values()}
    assert methods == SIGNAL_ONLY | {"cardialign", "merl", "melp"}
    assert {each.supervised for each in design.variants} - {None} == {"supervised-s4", "supervised-resnet1d"}
    assert design.measures == ("probe_10", "probe", "fresh") and design.reference == "cardialign"
    firsts = {cell.name: cell.variant.first.records if cell.variant.first else 0 for cell in cells}
    seen = {
        name: firsts[name] + each.training.global_batch * (each.training.steps or 0) for name, each in configs.items()
    }
    assert set(seen.values()) == {design.records}
    assert {tuple(each.data.folds or ()) for each in configs.values()} == {(1, 2, 3)}
    sizes = {each.supervised: encoder_section(each.supervised, [one[8:] for one in each.overrides])
             for each in design.variants if each.supervised}  # fmt: skip
    assert (
        sizes["supervised-resnet1d"].model_copy(update={"embedding_dim": 128}) == configs["simclr-fold4-seed0"].encoder
    )
    of_cpc = configs["cpc-fold4-seed0"].encoder
    assert all(getattr(sizes["supervised-s4"], key) == getattr(of_cpc, key) for key in ("width", "depth", "token_ms"))
    shared = {"simclr", "byol", "barlow_twins", "moco_v3", "simsiam", "clocs", "astcl"}
    assert len({each.encoder for each in configs.values() if each.method.name in shared}) == 1, "one encoder, so a loss"


def test_a_study_says_how_many_records_each_sees_and_nothing_gives_one_of_them_more() -> None:
    a, b = Variant("a", "", {}), Variant("b", "", {"training.global_batch": 48}, "siglip-tiny")
    design = Design("mine", "cardialign-tiny", "a", (a, b), 960)
    setting = dataclasses.replace(PLACES, overrides=("training.global_batch=32",))
    configs = {each.name: config_of(design, Cell(each, 4, 0), setting) for each in (a, b)}
    told = {name: (each.method.name, each.training.steps, each.training.epochs) for name, each in configs.items()}
    assert told == {"a": ("cardialign", 30, None), "b": ("siglip", 20, None)}
    with pytest.raises(UsageError, match=r"variant b: training\.global_batch 48 does not divide the 1000 records"):
        config_of(dataclasses.replace(design, records=1000), Cell(b, 4, 0), PLACES)
    more = dataclasses.replace(b, changes={**b.changes, "training.steps": 21})
    cells = [Cell(each, 4, 0) for each in (a, more)]
    configs = {cell.name: config_of(design, cell, setting) for cell in cells}
    with pytest.raises(UsageError, match="see different numbers: a 960, b 1008"):
        check(dataclasses.replace(design, variants=(a, more)), cells, configs, setting, None)  # type: ignore[arg-type]


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
        ("{name: a, recipe: b, reference: c, variants: {c: {words: w, set: {}, recipe: 3}}}", "a word for `recipe`"),
        ("{name: a, recipe: b, reference: c, records: 1.5, variants: {c: {words: w, set: {}}}}", "no whole number"),
        (
            "{name: a, recipe: b, reference: c, measures: [probe_0, probe], variants: {}}",
            "has 'probe_0'; known",
        ),
        ("{name: a, recipe: b, reference: c, measures: [probe, probe], variants: {}}", "names one twice"),
        ("{name: a, recipe: b, reference: c, measures: [probe_10], variants: {}}", "measures has no probe"),
        ("{name: a, recipe: b, reference: c, measures: probe, variants: {}}", "no list of words"),
        (
            "{name: a, recipe: b, reference: c, measures: [probe], missingness: true, variants: {}}",
            "missingness is scored by words, and measures has no zero_shot",
        ),
        (
            "{name: a, recipe: b, reference: c, variants: {c: {words: w, set: {}, supervised: s4}}}",
            "the presets are supervised-s4, supervised-resnet1d",
        ),
        (
            "{name: a, recipe: b, reference: c, variants: {c: {words: w, set: {e.f: 1}, supervised: supervised-s4}}}",
            "it has no recipe, no first training, and sets keys of `encoder.` alone",
        ),
        (
            "{name: a, recipe: b, reference: c, variants: {c: {words: w, set: {}, supervised: supervised-s4}}}",
            "its reference is supervised",
        ),
        (
            "{name: a, recipe: b, reference: c, variants: {c: {words: w, set: {}, first: {recipe: d, records: 9}}}}",
            "does not say how many `records` both see together",
        ),
        (
            "{name: a, recipe: b, reference: c, records: 8, variants: {c: {words: w, set: {}, first: "
            "{recipe: d, records: 8}}}}",
            "shows 8 records to its first training; give a number above 0 and below 8",
        ),
        (
            "{name: a, recipe: b, reference: c, records: 8, variants: {c: {words: w, set: {}, first: d}}}",
            "needs a mapping for `first`",
        ),
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
    sized = dataclasses.replace(
        outcomes[0], facts={**outcomes[0].facts, "gflop": 0.25, "trained_parameters": 2_000_000}
    )
    row = lines_of(study_table(MINE, [sized, *outcomes[1:]], resamples=20))[2]
    assert row.endswith("| 0.00 | 2.00 | 0.25 | 2 | 4 |"), row
    with_floors, without = table["rows"][1], study_table(MINE, outcomes, resamples=40)["rows"][1]
    assert with_floors == without, "floors change no figure of a variant"


def test_cells_of_other_records_are_not_compared() -> None:
    good, bad = outcome(GOOD, 1, 0, 2.0), outcome(BAD, 1, 0, 1.0)
    moved = {key: of[::-1] for key, of in bad.patients.items()}
    with pytest.raises(UserError, match="good-fold1-seed0 and bad-fold1-seed0 were not scored on the same records"):
        study_table(MINE, [good, dataclasses.replace(bad, patients=moved)], resamples=20)


def test_training_is_worth_what_it_adds_to_the_probe_of_fresh_weights() -> None:
    """Of each row, paired by patient; a row without fresh weights has none, and no share of labels is mixed up."""
    design = dataclasses.replace(MINE, measures=("probe_10", "probe", "fresh"))
    outcomes = []
    for variant, few, every, fresh in ((GOOD, 0.4, 2.0, 0.2), (BAD, 0.3, 0.5, 0.5)):
        for fold, seed in ((1, 0), (2, 0), (1, 1), (2, 1)):
            found = outcome(variant, fold, seed, every, design.measures)
            found.scores["probe_10"] = outcome(variant, fold, seed, few).scores["probe"]
            found.scores["fresh"] = outcome(variant, fold, seed, fresh).scores["probe"]
            outcomes.append(found)
    no_fresh = [
        dataclasses.replace(each, scores={key: each.scores[key] for key in ("probe_10", "probe")})
        for each in outcomes
        if each.cell.variant is BAD
    ]
    table = study_table(design, outcomes, resamples=60)
    good, bad = table["rows"]
    for row, name in ((good, GOOD), (bad, BAD)):
        own = [each for each in outcomes if each.cell.variant is name]
        areas = {
            measure: np.mean([roc_auc_score(each.truth["probe"], each.scores[measure]) for each in own])
            for measure in design.measures
        }
        assert row["probe_10"]["auroc"] == pytest.approx(areas["probe_10"], abs=1e-12)
        assert row["probe"]["auroc"] == pytest.approx(areas["probe"], abs=1e-12)
        assert row["gained"]["fresh"] == pytest.approx(areas["fresh"], abs=1e-12)
        assert row["gained"]["gained"] == pytest.approx(areas["probe"] - areas["fresh"], abs=1e-12)
        assert "zero_shot" not in row
    assert "RankMe" not in lines_of(table)[0], "no cell says it"
    ranked = [
        dataclasses.replace(each, facts={**each.facts, "effective_rank": 3.0 + each.cell.seed}) for each in outcomes
    ]
    one = dataclasses.replace(ranked[-1], facts=outcomes[-1].facts)
    told = study_table(design, [*ranked[:-1], one], resamples=20)
    assert [row["effective_rank"] for row in told["rows"]] == [3.5, None], "one cell of the second row does not say it"
    assert "| RankMe |" in lines_of(told)[0] and "| 3.5 |" in lines_of(told)[2]
    assert good["gained"]["low"] > 0.1 and bad["gained"]["low"] == bad["gained"]["high"] == 0, "the same scores"
    head, _, first, second = lines_of(table)[:4]
    assert "| probe, 10 % of the labels (95 %) |" in head and "| over fresh weights |" in head
    assert "zero-shot" not in head
    kept = [each for each in outcomes if each.cell.variant is GOOD]
    without = study_table(design, [*kept, *no_fresh], resamples=60)["rows"]
    assert "gained" not in without[1] and without[0]["gained"] == good["gained"]
    assert without[1]["probe_10"] == bad["probe_10"] and f"{bad['probe']['auroc']:.3f}" in second and first != second


def test_floors_have_cells_at_the_places_of_the_table_and_hand_features_know_no_seed() -> None:
    cells = [(each.variant.name, each.fold, each.seed) for each in floor_cells([(0, 7), (0, 8), (1, 7), (1, 7)])]
    assert [each for each in cells if each[0] == "hand-features"] == [("hand-features", 7, 0), ("hand-features", 8, 0)]
    for name in ("untrained", "random-kernels"):
        assert [each for each in cells if each[0] == name] == [(name, 7, 0), (name, 8, 0), (name, 7, 1)]
    drawn = floor_cells([(0, 7), (1, 7)], ("probe_10", "probe"))
    assert [each.seed for each in drawn if each.variant.name == "hand-features"] == [0, 1], "labels are drawn by it"


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
        cells.append(
            keep(
                dataclasses.replace(found, facts={**found.facts, "made_from": Origin({"n": name}).digest}),
                tmp_path / name,
            )
        )
        again = finished(found.cell, tmp_path / name, Origin({"n": name}))
        assert (
            again is not None and np.array_equal(again.decided["zero_shot"], decided) and "probe" not in again.decided
        )
    design = Design("mine", "r", "a", tuple(each.cell.variant for each in cells))
    row = study_table(design, cells, 10)["rows"][0]
    areas = [roc_auc_score(truth[20:, 0], scores[20:, 0]), roc_auc_score(truth[:, 1], scores[:, 1])]
    assert row["zero_shot"]["auroc"] == pytest.approx(np.mean(areas), abs=1e-12)
    everything = [roc_auc_score(truth[:, c], scores[:, c]) for c in range(2)]
    assert row["probe"]["auroc"] == pytest.approx(np.mean(everything), abs=1e-12)


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
