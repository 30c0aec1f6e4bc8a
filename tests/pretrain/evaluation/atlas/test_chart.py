"""A record is painted as what it is: several classes are never painted as one, and nothing is guessed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from cardialign.data_shards.errors import UsageError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.evaluation.atlas.chart import (
    OTHER,
    SEVERAL,
    UNLABELLED,
    Atlas,
    MapOptions,
    colours,
    draw_sample,
    make_atlas,
)
from cardialign.pretrain.evaluation.atlas.draw import AGES, CHILD, GREY, PALETTE, age_ticks, class_legend, sheet
from cardialign.pretrain.export.loaded import LoadedEncoder, untrained_encoder
from tests.support.small_encoder import SPEC, small_config


@pytest.fixture(scope="module")
def atlas(planted: ShardSet, encoder: LoadedEncoder) -> Atlas:
    both = [("one", encoder), ("two", untrained_encoder(small_config(), SPEC, seed=5))]
    return make_atlas(both, planted, np.arange(len(planted)), MapOptions(records=60, seed=3))


def test_a_record_with_two_classes_has_the_colour_of_neither() -> None:
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=bool)
    labelled = np.array([1, 1, 1, 1, 1, 0], dtype=bool)
    assert colours(truth, labelled, (0, 1)).tolist() == [0, SEVERAL, OTHER, OTHER, 1, UNLABELLED]
    assert colours(truth, labelled, (1, 2)).tolist() == [OTHER, 0, 1, OTHER, SEVERAL, UNLABELLED]


def test_both_maps_show_the_same_sample_and_say_how_it_was_drawn(atlas: Atlas, planted: ShardSet) -> None:
    assert len(atlas.sample.rows) == 60 and len(planted) == 120
    assert atlas.sample.words == "60 of 120 records, drawn with seed 3"
    assert all(chart.places.shape == (60, 2) for chart in atlas.charts)
    again = draw_sample(np.arange(120), 60, 3)
    np.testing.assert_array_equal(again.rows, atlas.sample.rows)
    assert not np.array_equal(draw_sample(np.arange(120), 60, 4).rows, again.rows)
    assert draw_sample(np.arange(50), 60, 3).words == "all 50 records"
    assert "60 of 120 records, drawn with seed 3" in sheet(atlas).texts[-1].get_text()


def test_the_legend_counts_every_record_once(atlas: Atlas) -> None:
    assert sum(entry["records"] for entry in class_legend(atlas)) == 60
    truth, labelled = atlas.about.truth, atlas.about.labelled
    by_words = {entry["words"].split()[0]: entry["records"] for entry in class_legend(atlas)}
    assert by_words["not"] == int((~labelled).sum()) > 0
    assert by_words["several"] == int((truth[:, list(atlas.shown)].sum(axis=1) > 1).sum()) > 0


def test_the_difference_of_two_encoders_is_paired_and_the_result_names_no_record(atlas: Atlas) -> None:
    told = atlas.to_dict()
    first, second = (chart["sharing"]["value"] for chart in told["charts"])
    assert told["differences"]["sharing"]["value"] == pytest.approx(first - second)
    same = [(chart["sharing_by_chance"]["value"]) for chart in told["charts"]]
    assert same[0] == same[1]
    assert "planted-" not in json.dumps(told) and "patient-" not in json.dumps(told)


def test_what_cannot_be_coloured_is_told_with_what_can(planted: ShardSet, encoder: LoadedEncoder) -> None:
    rows = np.arange(len(planted))
    with pytest.raises(UsageError, match=r"no label set 'super'(.|\n)*finding"):
        make_atlas([("one", encoder)], planted, rows, MapOptions("super"))
    with pytest.raises(UsageError, match=r"label set finding has no class UPP(.|\n)*DOWN"):
        make_atlas([("one", encoder)], planted, rows, MapOptions(classes=["UPP", "UP"]))
    with pytest.raises(UserError, match="is not for other: it holds 2 s at 100 Hz, the encoder was trained on 1 s"):
        other = untrained_encoder(small_config(), type(SPEC)(100, 1), seed=0)
        make_atlas([("one", encoder), ("other", other)], planted, rows, MapOptions())


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("paper", ["#ffffff", "#14191f"], ids=["light", "dark"])
def test_every_colour_stands_out_from_the_page(paper: str) -> None:
    """WCAG 2.2, 1.4.11, asks for 3 of what carries meaning; the ends of the ages and grey are held to 2.4."""
    assert min(contrast(colour, paper) for colour in PALETTE) >= 2.85, [contrast(c, paper) for c in PALETTE]
    from matplotlib.colors import to_hex

    assert min(contrast(to_hex(AGES(at)), paper) for at in np.linspace(0, 1, 11)) >= 2.4
    assert contrast(GREY, paper) >= 2.4


DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
"""Machado, Oliveira and Fernandes 2009, severity 1."""


@pytest.mark.parametrize("eye", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["all", "no green", "no red"])
def test_the_colours_differ_for_every_eye(eye: list[list[float]]) -> None:
    seen = np.array([[int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)] for c in PALETTE]) @ np.array(eye).T
    apart = np.linalg.norm(seen[:, None] - seen[None, :], axis=-1) + 9 * np.eye(len(PALETTE))
    assert apart.min() > 0.15, apart.round(2)


def test_childhood_has_more_of_the_scale_where_there_are_children(atlas: Atlas) -> None:
    ages = np.linspace(0, 80, 60)
    young = dataclasses.replace(atlas, about=dataclasses.replace(atlas.about, ages=ages))
    places = {words: at for at, words in age_ticks(young)}
    assert places["0"] == 0 and places["10"] == pytest.approx(np.sqrt(10 / 80)) and CHILD > 10
    grown = dataclasses.replace(atlas, about=dataclasses.replace(atlas.about, ages=ages / 2 + 40))
    assert {words: at for at, words in age_ticks(grown)} == pytest.approx({"40": 0.0, "60": 0.5, "80": 1.0})
    none = dataclasses.replace(atlas, about=dataclasses.replace(atlas.about, ages=np.full(60, np.nan)))
    assert age_ticks(none) == [] and any("no age is known" in text.get_text() for text in sheet(none).texts)


def test_a_long_name_is_cut_before_it_leaves_the_sheet_and_none_is_taken_for_mathematics(atlas: Atlas) -> None:
    names = tuple(
        (f"CODE{c}", "$x_$ Wide QRS complex of a very long name indeed") for c in range(len(atlas.about.names))
    )
    drawn = sheet(dataclasses.replace(atlas, about=dataclasses.replace(atlas.about, names=names)))
    (legend,) = drawn.legends
    box = legend.get_window_extent(drawn.canvas.get_renderer())
    assert box.x1 < drawn.bbox.x1 and any("$x_$" in text.get_text() for text in legend.get_texts())
