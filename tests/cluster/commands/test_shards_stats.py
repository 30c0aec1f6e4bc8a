"""`shards stats`: figures as JSON, and a page that needs nothing else and shows what it was given, escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cardialign.cluster.pages.code_names import names_of
from cardialign.cluster.pages.set_page import write_set_page

Call = Callable[..., Any]


def test_figures_and_page_by_command(cardialign: Call, shards: Path, tmp_path: Path) -> None:
    answer = cardialign("shards", "stats", shards, "--out", tmp_path / "stats.html", "--top", 5)
    assert answer.code == 0 and len(answer.json["reports"]["statements"]) == 5
    assert sum(answer.json["sex"].values()) == answer.json["records"] and answer.json["labels"]["finding"]["codes"]
    page = Path(answer.json["page"]).read_text(encoding="utf-8")
    assert f"{answer.json['records']:,}" in page and next(iter(answer.json["reports"]["statements"])) in page
    assert "<script" not in page and "http" not in page and page.count("<svg") >= 10
    for svg in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")
    told = cardialign("shards", "stats", shards, plain=True).out
    assert "sampling rate" in told and "labels finding" in told
    assert cardialign("shards", "stats", shards, "--sample", 0).code == 2


def test_codes_stand_with_their_names(cardialign: Call, shards: Path, tmp_path: Path) -> None:
    answer = cardialign("shards", "stats", shards, "--out", tmp_path / "stats.html")
    labels = answer.json["labels"]["finding"]
    assert labels["names"]["NORM"] == "Normal ECG" and set(labels["names"]) <= set(labels["codes"])
    page = Path(answer.json["page"]).read_text(encoding="utf-8")
    assert "NORM: Normal ECG" in page
    assert "NORM (Normal ECG)" in cardialign("shards", "stats", shards, plain=True).out


def test_names_are_those_of_the_label_set_and_of_snomed_and_none_for_codes_of_others() -> None:
    assert names_of("super", ["NORM", "MI", "STTC", "CD", "HYP"])["MI"] == "Myocardial infarction"
    assert names_of("finding", ["NORM", "MINE", "YOURS", "THEIRS"]) == {}, "a set of the same name with other codes"
    assert names_of("scp", ["SR", "IMI", "PRC(S)"]) == {
        "SR": "Sinus rhythm",
        "IMI": "Inferior infarct",
        "PRC(S)": "Premature complexes",
    }
    assert names_of("anything", ["164889003", "x"]) == {"164889003": "Atrial fibrillation"}


def test_the_page_escapes_what_reports_and_labels_say_and_survives_a_set_without_them(
    cardialign: Call, shards: Path, tmp_path: Path
) -> None:
    figures = cardialign("shards", "stats", shards).json
    hostile = "<script>alert('ECG')</script> & more"
    figures["reports"]["statements"] = {hostile: 3}
    figures["labels"] = {hostile: {"labelled": 3, "codes": {hostile: 2}}}
    page = write_set_page(tmp_path / "a.html", figures).read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert" in page
    figures["labels"] = {}
    figures["reports"] |= {"with": 0}
    figures["age_years"] = {"known": 0, "unknown": 9, "histogram": {"edges": [], "counts": []}}
    assert "No record of this set has a report" in write_set_page(tmp_path / "b.html", figures).read_text(
        encoding="utf-8"
    )
