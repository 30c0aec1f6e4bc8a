"""`evaluate missingness` and `evaluate card` on a tiny set: figures, picture and card agree; mistakes are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cardialign.pretrain.evaluation.prompts import load_prompts
from cardialign.pretrain.export.loaded import load_encoder
from cardialign.pretrain.run.integrity import MISSINGNESS

PROMPTS = "virtual-findings-v2"


@pytest.fixture
def call(cardialign: Callable[..., Any], exported: Path, shards: Path) -> Callable[..., Any]:
    given = ("--encoder", exported, "--shards", shards, "--records", 24, "--draws", 1, "--bootstrap", 20)
    small = ("--leads-missing", "0,9", "--time-missing", "0,50")
    return lambda *words, **how: cardialign("evaluate", "missingness", *given, *small, *words, **how)


@pytest.mark.slow  # figures by arithmetic: tests/pretrain/evaluation/missingness; cards: tests/pretrain/export
def test_figures_picture_and_card_agree(
    call: Callable[..., Any], cardialign: Callable[..., Any], exported: Path, shards: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(exported, tmp_path / "mine"))
    files = ("--out", tmp_path / "m.json", "--picture", tmp_path / "m.svg")
    answer = call("--prompts", PROMPTS, "--encoder", mine, *files, "--presets", "leads-i-ii-v2", "--card")
    assert answer.code == 0, answer.err
    told = json.loads((tmp_path / "m.json").read_text())
    assert told["surfaces"] == answer.json["surfaces"] and "<svg" in (tmp_path / "m.svg").read_text()
    cells = {(each["leads"], each["time"]): each["auroc"]["value"] for each in told["surfaces"][0]["cells"]}
    assert set(cells) == {(0, 0.0), (0, 0.5), (9, 0.0), (9, 0.5)} and cells[0, 0.0] == told["auroc"]["value"]
    preset = told["presets"][0]
    assert preset["lost"]["value"] == pytest.approx(told["auroc"]["value"] - preset["auroc"]["value"])
    # the card that the folder carries now is that of the file, and says its figure
    assert json.loads((mine / MISSINGNESS).read_text()) == told["card"]
    encoder = load_encoder(mine)
    assert encoder.card is not None and encoder.digest == answer.json["export_digest"]
    figure = f"{-100 * preset['lost']['value']:+.1f}"
    assert figure in encoder.card.expect(load_leads("I", "II", "V2"))
    # what was measured before the card was there fits the encoder with it, and no other encoder
    again = cardialign("evaluate", "card", tmp_path / "m.json", "--encoder", mine)
    assert again.code == 0 and again.json["points_lost"]["only I, II, V2"].startswith(figure)
    other = tmp_path / "other"
    shutil.copytree(exported, other)
    (other / "provenance.json").write_text("{}")
    refused = cardialign("evaluate", "card", tmp_path / "m.json", "--encoder", other)
    assert refused.code == 1 and "provenance.json: content changed" in refused.json["problem"]


def load_leads(*names: str) -> Any:
    from cardialign.pretrain.evaluation.missingness.surface.hidden import among

    return among(names)


def test_a_probe_learns_from_whole_records_and_opens_its_test_once(
    call: Callable[..., Any], shards: Path, tmp_path: Path
) -> None:
    labels = load_prompts(PROMPTS).label_set
    folds = ("--train-folds", "1-6", "--validation-folds", "7-8", "--test-folds", "9-10")
    answer = call("--labels", labels, *folds, "--presets", "none")
    assert answer.code == 0, answer.err
    assert answer.json["measure"] == "linear probe" and answer.json["presets"] == []
    assert answer.json["encoders"][0]["test_opened"]["times"] >= 1
    cells = {(each["leads"], each["time"]): each["auroc"]["value"] for each in answer.json["surfaces"][0]["cells"]}
    assert 0 <= cells[9, 0.5] <= 1 and cells[0, 0.0] != cells[9, 0.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--presets", "smartwatch"), "'smartwatch' is no preset"),
        (("--presets", "I,V7"), "'V7' no lead"),
        (("--presets", "none", "limb"), "--presets says none, and others"),
        (("--leads-missing", "0,12"), "12 of 12 leads cannot be missing"),
        (("--leads-missing", "some"), "is no list of numbers of leads"),
        (("--time-missing", "0,100"), "100 % of the time cannot be missing"),
        (("--time-missing", "half"), "is no list of percent"),
        (("--picture", "surface.doc"), "is no name of a picture"),
        (("--probe",), "--probe belongs to a protocol"),
        (("--train-folds", "1-3"), "belong to --labels"),
        (("--encoder", "models:/x@y", "--card"), "is no folder of `cardialign export`"),
        (("--seeds", "b", "--card"), "a card is of one encoder"),
    ],
)
def test_what_cannot_be_measured_is_said(call: Callable[..., Any], words: tuple[str, ...], message: str) -> None:
    answer = call("--prompts", PROMPTS, *words)
    assert answer.code in (1, 2) and message in answer.json["problem"] and answer.json["remedy"]


def test_evidence_of_a_set_that_has_none_is_refused(call: Callable[..., Any], tmp_path: Path) -> None:
    label_set = load_prompts(PROMPTS).label_set
    classes = {code: {"name": code, "prompts": [code]} for code in ("AFIB", "SBRAD", "PVC")}
    rhythm = {"name": "rhythm-v1", "version": 1, "style": "bare", "label_set": label_set, "classes": classes}
    (tmp_path / "rhythm.yaml").write_text(yaml.safe_dump(rhythm))
    answer = call("--prompts", tmp_path / "rhythm.yaml", "--evidence")
    assert answer.code == 1 and "in which leads its primary evidence stands" in answer.json["problem"], answer.json


def test_a_result_without_a_card_is_no_card(cardialign: Callable[..., Any], exported: Path, tmp_path: Path) -> None:
    for content in ("[]", '{"card": null}', "{}"):
        (tmp_path / "r.json").write_text(content)
        answer = cardialign("evaluate", "card", tmp_path / "r.json", "--encoder", exported)
        assert answer.code == 1 and "holds no missingness card" in answer.json["problem"]
