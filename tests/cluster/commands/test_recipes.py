"""`cardialign recipes`, `methods`: what can be trained, how large it is, and in what recipes differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cardialign.pretrain.choices import METHODS
from cardialign.pretrain.config import load_config, recipe_names
from tests.cluster.conftest import Answer

Call = Callable[..., Answer]


def test_every_shipped_recipe_is_counted(cardialign: Call) -> None:
    answer = cardialign("recipes", "list")
    assert answer.code == 0, answer.err
    counted = answer.json["recipes"]
    assert [counts["name"] for counts in counted] == recipe_names()
    for counts in counted:
        assert counts["encoder_parameters"] > 0 and counts["forward_flop"] > 0
        assert (counts["trained_parameters"] is None) == (counts["note"] is not None)
    assert (answer.json["sampling_rate"], answer.json["record_seconds"]) == (500.0, 10.0)
    assert answer.json["flop_rule"].startswith("one multiply-add is 2 FLOP")


def test_the_table_names_one_recipe_and_what_could_not_be_counted(cardialign: Call, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nencoder: {name: resnet1d}\ntext: {encoder: nobody/has-this, trainable: full}\n")
    answer = cardialign("recipes", "list", recipe, plain=True)
    assert answer.code == 0, answer.err
    head, row, *_, rule, note = answer.out.splitlines()
    assert head.split() == [
        "recipe",
        "method",
        "encoder",
        "ECG",
        "encoder",
        "all",
        "that",
        "trains",
        "GFLOP",
        "per",
        "record",
    ]
    assert row.split() == ["mine", "cardialign", "resnet1d", "3.98", "M", "?", "3.43"]
    assert "10 s at 500 Hz" in rule and note.startswith("?: report encoder nobody/has-this is not on this machine")


def test_shorter_records_cost_less(cardialign: Call) -> None:
    whole, half = (
        cardialign("recipes", "list", "cardialign-tiny", "--seconds", seconds).json["recipes"][0] for seconds in (10, 5)
    )
    assert half["encoder_parameters"] == whole["encoder_parameters"]
    assert 0.4 < half["forward_flop"] / whole["forward_flop"] < 0.51


def test_wrong_words_are_answered(cardialign: Call) -> None:
    assert "no recipe 'cardialign-huge'" in cardialign("recipes", "list", "cardialign-huge").json["problem"]
    assert "have no sample" in cardialign("recipes", "list", "--seconds", 1e-6).json["problem"]


def test_a_recipe_is_shown_whole_and_what_is_shown_is_a_recipe(cardialign: Call, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: simclr-tiny\nmethod: {temperature: 0.2}\n")
    answer = cardialign("recipes", "show", mine, "--set", "seed=5", plain=True)
    assert answer.code == 0, answer.err
    head, base, *_ = answer.out.splitlines()
    assert head.endswith("mine.yaml") and "extends" in base and base.endswith("simclr-tiny.yaml")
    again = tmp_path / "again.yaml"
    again.write_text(answer.out)
    assert load_config(again) == load_config(mine, "seed=5")
    assert cardialign("recipes", "show", mine).json["recipe"]["method"]["temperature"] == 0.2
    assert "no recipe 'nothing'" in cardialign("recipes", "show", "nothing").json["problem"]


def test_recipes_differ_in_what_their_files_say(cardialign: Call, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: simclr-tiny\nmethod: {temperature: 0.2}\nseed: 7\n")
    rows = cardialign("recipes", "diff", "simclr-tiny", mine).json["settings"]
    assert {row["key"]: list(row["values"].values()) for row in rows} == {
        "method.temperature": ["0.1", "0.2"],
        "seed": ["0", "7"],
    }
    shown = cardialign("recipes", "diff", "simclr-tiny", mine, plain=True).out.splitlines()
    assert shown[0].split()[:2] == ["setting", "simclr-tiny"] and shown[1].split() == [
        "method.temperature",
        "0.1",
        "0.2",
    ]
    mine.write_text("extends: simclr-tiny\n")
    assert "nothing but their names" in cardialign("recipes", "diff", "simclr-tiny", mine, plain=True).out
    for words in (["simclr-tiny"], ["simclr-tiny", "simclr-tiny"]):
        assert "two or more different recipes" in cardialign("recipes", "diff", *words).json["problem"]


def test_every_method_says_what_it_does_and_whether_it_reads_reports(cardialign: Call) -> None:
    methods = {each["name"]: each for each in cardialign("methods", "list").json["methods"]}
    assert set(METHODS) == set(methods)
    assert not methods["simclr"]["reports"] and methods["merl"]["reports"]
    assert "Chen et al. 2020" in methods["simclr"]["what"] and "simclr-tiny" in methods["simclr"]["recipes"]
    assert all(len(each["what"]) > 20 and each["recipes"] for each in methods.values())
    assert "SimCLR" in cardialign("methods", "list", plain=True).out


def test_what_a_method_costs_is_that_of_the_recipes_that_use_it(cardialign: Call) -> None:
    simclr, byol = cardialign("methods", "list", "simclr", "byol", "--cost").json["methods"]
    assert [simclr["name"], byol["name"]] == ["simclr", "byol"]
    listed = cardialign("recipes", "list", *simclr["recipes"]).json["recipes"]
    counted = {each["name"]: each["forward_flop"] for each in listed}
    assert simclr["gflop"] == {name: pytest.approx(flop / 1e9, abs=1e-4) for name, flop in counted.items()}
    assert simclr["gflop"]["simclr-published"] == byol["gflop"]["byol-published"], "the same ResNet18"
    assert "simclr-tiny (0.41 GFLOP)" in cardialign("methods", "list", "simclr", "--cost", plain=True).out
    unknown = cardialign("methods", "list", "simclrr")
    assert unknown.code == 2 and "simclr" in unknown.json["remedy"]
