"""`cardialign recipes`: every shipped recipe with its size, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cardialign.pretrain.config import recipe_names
from tests.cluster.conftest import Answer

Call = Callable[..., Answer]


def test_every_shipped_recipe_is_counted(cardialign: Call) -> None:
    answer = cardialign("recipes")
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
    answer = cardialign("recipes", recipe, plain=True)
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
        cardialign("recipes", "cardialign-tiny", "--seconds", seconds).json["recipes"][0] for seconds in (10, 5)
    )
    assert half["encoder_parameters"] == whole["encoder_parameters"]
    assert 0.4 < half["forward_flop"] / whole["forward_flop"] < 0.51


def test_wrong_words_are_answered(cardialign: Call) -> None:
    assert "no recipe 'cardialign-huge'" in cardialign("recipes", "cardialign-huge").json["problem"]
    assert "have no sample" in cardialign("recipes", "--seconds", 1e-6).json["problem"]
