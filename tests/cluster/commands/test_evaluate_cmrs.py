"""`evaluate cmrs` on a tiny set: figures, table and file agree, and what cannot be evaluated is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.data_shards.build.build import SetPlan, build_shards
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.sources import open_source

PROMPTS = "virtual-findings-v2"


@pytest.fixture
def call(cardialign: Callable[..., Any], exported: Path, shards: Path) -> Callable[..., Any]:
    given = (
        "--encoder",
        exported,
        "--shards",
        shards,
        "--prompts",
        PROMPTS,
        "--records",
        3,
        "--draws",
        1,
        "--bootstrap",
        20,
    )
    return lambda *words, **how: cardialign("evaluate", "cmrs", *given, "--missing", "leads", *words, **how)


@pytest.mark.slow  # the figures themselves: tests/pretrain/evaluation/missingness
def test_figures_table_and_file_agree_and_an_encoder_is_not_better_than_itself(
    call: Callable[..., Any], exported: Path, tmp_path: Path
) -> None:
    answer = call("--beside", exported, "--share", 0.25, "--out", tmp_path / "cmrs.json")
    assert answer.code == 0, answer.err
    told = json.loads((tmp_path / "cmrs.json").read_text())
    assert told["records"] == 3 and told["conditions"] == answer.json["conditions"]
    masks = [(each["kind"], each["mask"], each["budget"]) for each in told["conditions"][:2]]
    assert masks == [("leads", "random", 3), ("leads", "adversarial", 3)]
    random, worst = (each["cmrs"]["value"] for each in told["conditions"][:2])
    if told["coverage"]:
        assert 0 <= worst <= random <= 1
        assert told["gaps"]["leads"]["cmrs"]["value"] == pytest.approx(random - worst)
        assert {each["cmrs"]["value"] for each in told["beside"]["paired"]} <= {0.0, None}
    assert "gaps are flat lines" in call("--share", 0.25, plain=True).out


def test_one_encoder_twice_is_no_two_seeds(call: Callable[..., Any], exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    for words, option in (
        (("--seeds", copy), f"--seeds: {exported} and {copy} are one encoder"),
        (("--beside", "models:/a@b", copy, "models:/a@b"), "--beside: models:/a@b and models:/a@b are one encoder"),
    ):
        answer = call(*words)
        assert answer.code == 2 and option in answer.json["problem"], answer.json


def test_a_set_that_the_encoder_cannot_read_is_named(call: Callable[..., Any], cohort: Path, tmp_path: Path) -> None:
    """Records longer than those that the encoder was made for."""
    source = open_source("mimic-iv-ecg", cohort, labels=str(cohort / "truth.csv"))
    build_shards(source, tmp_path / "longer", SetPlan(SignalSpec(100, 4)), workers=1)
    answer = call("--shards", tmp_path / "longer", "--allow-trained")
    assert answer.code == 1 and "longer: it holds 4 s at 100 Hz" in answer.json["problem"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--missing", "beats"), "nothing is missing by 'beats'"),
        (("--prompts", "no-such-set"), "no prompt set 'no-such-set'"),
        (("--masker", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_said(call: Callable[..., Any], words: tuple[str, ...], message: str) -> None:
    answer = call(*words)
    assert answer.code in (1, 2) and message in answer.json["problem"] and answer.json["remedy"]
