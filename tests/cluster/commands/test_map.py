"""`cardialign map`, `search` and the weights on a picture: files that need nothing else, and answers to odd words."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from cardialign.data_shards.shard_set.shard_set import ShardSet
from tests.cluster.conftest import Answer
from tests.support.tiny_shards import RECORDS, TinySource, make_shards

Call = Callable[..., Answer]


def words(encoder: Path, shards: Path, *more: object) -> tuple[object, ...]:
    return ("map", "--encoder", encoder, "--shards", shards, *more)


@pytest.fixture
def hostile(exported: Path, tmp_path: Path) -> Path:
    """A copy of the encoder whose name would be markup."""
    return shutil.copytree(exported, tmp_path / "<b onload=alert(1)>&amp")


def test_two_encoders_beside_each_other_on_a_page_that_needs_nothing_and_names_no_one(
    cardialign: Call, exported: Path, hostile: Path, shards: Path, tmp_path: Path
) -> None:
    page, picture = tmp_path / "map.html", tmp_path / "map.svg"
    answer = cardialign(*words(exported, shards, "--beside", hostile, "--records", 12, "--out", page, "--out", picture))
    assert answer.code == 0 and answer.json["records"] == 12 < answer.json["out_of"]
    text = page.read_text()
    assert "<script" not in text and "<b onload" not in text and "&lt;b onload=alert(1)&gt;&amp;amp" in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text) and "url(" not in text
    assert "12 of" in text and "drawn with seed 0" in text and "not why" not in text
    opened = ShardSet.open(shards)
    assert not any(opened.key(row) in text for row in range(len(opened)))
    drawn = picture.read_text()
    assert "drawn with seed 0" in drawn and "&lt;b onload=alert(1)&gt;" in drawn and str(tmp_path) not in text + drawn
    assert answer.json["charts"][0]["sharing"] == answer.json["charts"][1]["sharing"], "they are the same encoder"
    assert answer.json["differences"]["sharing"]["value"] == 0


@pytest.fixture
def aged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set whose records have ages, and no labels."""
    read = TinySource.read
    monkeypatch.setattr(
        TinySource,
        "read",
        lambda self, entry: replace(read(self, entry), age_years=20.0 + 60 / RECORDS * entry.meta["i"]),
    )
    return make_shards(tmp_path / "aged", silent=RECORDS)


def test_a_set_without_labels_is_a_map_by_age(cardialign: Call, exported: Path, aged: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "map.html", tmp_path / "map.svg"
    answer = cardialign(*words(exported, aged, "--out", page, "--out", picture))
    assert answer.code == 0 and answer.json["label_set"] is None and answer.json["ages_known"] == RECORDS
    text, drawn = page.read_text(), picture.read_text()
    assert "By age" in text and "no labels" in text and "class" not in re.sub(r'class="', "", text.partition("<h1")[2])
    assert "age in years" in drawn and "by class" not in drawn
    for more in (("--labels", "finding"), ("--classes", "A")):
        refused = cardialign(*words(exported, aged, *more, "--out", page))
        assert refused.code == 2 and "no labels" in refused.json["problem"] and "ages" in refused.json["remedy"]


@pytest.mark.slow
def test_the_same_words_write_the_same_picture(cardialign: Call, exported: Path, shards: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        out = tmp_path / name
        assert cardialign(*words(exported, shards, "--records", 30, "--seed", 7, "--out", out), plain=True).code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert image.imread(tmp_path / "a.png").shape[0] > 1000


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--out", "map.gif"), "is no page and no picture"),
        (("--out", "m.html", "--classes", "A,B,C,D,E,F,G"), "has no class"),
        (("--out", "m.html", "--records", 5), "5 records make no map"),
    ],
)
def test_an_odd_word_is_answered_and_no_file_is_left(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more, told
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = cardialign(*words(exported, shards, *more))
    assert answer.code in (1, 2) and told in answer.json["problem"] and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_search_answers_with_records_and_reports_and_shows_no_control_character(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path
) -> None:
    key = ShardSet.open(shards).key(2)
    base = ("search", "--encoder", exported, "--shards", shards, "--top", 3)
    answer = cardialign(*base, "--key", key, "--out", tmp_path / "a.json").json
    assert len(answer["records"]) == len(answer["reports"]) == 3 and key not in [e["key"] for e in answer["records"]]
    assert json.loads((tmp_path / "a.json").read_text())["records"] == answer["records"]
    printed = cardialign(*base, "--text", "Atrial\x1b[2J fibrillation\u202e", plain=True).out
    assert "\x1b" not in printed and "\u202e" not in printed and printed.count("  +") + printed.count("  -") == 3


def test_a_picture_carries_the_weights_of_the_lead_groups(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path
) -> None:
    base = ("shards", "inspect", shards, "--row", 1)
    plain = cardialign(*base, "--out", tmp_path / "plain.png")
    weighed = cardialign(*base, "--out", tmp_path / "weighed.png", "--encoder", exported)
    found = weighed.json["lead_group_weights"]
    assert sum(found.values()) == pytest.approx(1, abs=1e-5) and "lead_group_weights" not in plain.json
    a, b = (image.imread(tmp_path / name)[..., :3] for name in ("plain.png", "weighed.png"))
    assert a.shape == b.shape and (np.abs(a - b).max(axis=2) > 0.02).mean() > 0.2
    refused = cardialign(*base, "--encoder", exported)
    assert refused.code == 2 and "--out" in refused.json["remedy"]


def test_views_are_drawn_for_a_picture_of_a_recipe_that_has_some(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path
) -> None:
    base = ("shards", "inspect", shards, "--row", 1, "--views", "cpc-tiny")
    for more, problem, remedy in (
        ((), "--views draws views in a picture, and none is asked for", "add --out FILE.png"),
        (("--out", tmp_path / "a.png", "--encoder", exported), "two pictures", "one of them"),
        (("--out", tmp_path / "a.png"), "recipe cpc-tiny: its method cpc makes no two views", "simclr"),
    ):
        refused = cardialign(*base, *more)
        assert refused.code == 2 and problem in refused.json["problem"] and remedy in refused.json["remedy"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_record_stands_beside_its_views_with_what_was_drawn(cardialign: Call, shards: Path, tmp_path: Path) -> None:
    base = ("shards", "inspect", shards, "--row", 1)
    alone = cardialign(*base, "--out", tmp_path / "alone.png").json
    answer = cardialign(*base, "--out", tmp_path / "new" / "views.png", "--views", "simclr-tiny").json
    assert {**answer, "seconds": 0, "picture": 0, "views": 0} == {**alone, "seconds": 0, "picture": 0, "views": 0}
    assert list(answer["views"]) == [f"Step {step}, {view} view" for step in (0, 1) for view in ("first", "second")]
    for words in answer["views"].values():
        assert words[0].startswith("scale ") and any(line.endswith("mV (standard deviation)") for line in words)
    one, many = (image.imread(each["picture"]) for each in (alone, answer))
    assert many.shape[1] > 2.2 * one.shape[1] and many.shape[0] > 1.4 * one.shape[0]
