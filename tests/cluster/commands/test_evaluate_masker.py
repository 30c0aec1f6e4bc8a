"""`evaluate masker` on a run of a few steps: figures, table, pictures and file agree; what cannot be said is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.data_shards.record import STANDARD_LEADS
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import build_text_bank
from cardialign.pretrain.config import load_config
from cardialign.pretrain.run.observer import NullObserver
from cardialign.pretrain.training.loop import train
from tests.support.processes import run_ranks
from tests.support.tiny_set import SMALL
from tests.support.tiny_shards import HashingEncoder

PROMPTS = "virtual-findings-v2"
CHANGES = (*SMALL, "training.steps=2", "training.checkpoint_every=2", "encoder.width=16", "encoder.depth=1")


def train_masker(rank: int, world: int, shards: Path, run_dir: Path) -> None:
    ways = (f"data.shards={json.dumps(str(shards))}", "method.masker.begins=0", "training.precision=fp32")
    train(load_config("scar", [*CHANGES, *ways]), run_dir, NullObserver())


@pytest.mark.slow
@pytest.mark.processes
def test_figures_pictures_and_file_agree(cardialign: Callable[..., Any], shards: Path, tmp_path: Path) -> None:
    own, run_dir = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(shards, own)
    build_text_bank(ShardSet.open(own), HashingEncoder())
    run_ranks(1, train_masker, own, run_dir, init=False)
    given = ("evaluate", "masker", run_dir, "--shards", own, "--prompts", PROMPTS, "--bootstrap", 20)

    answer = cardialign(*given, "--share", 0.25, "--pictures", tmp_path / "pictures", "--out", tmp_path / "out.json")
    assert answer.code == 0, answer.err
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["share"] == 0.25 and told["found"] == answer.json["found"] and told["classes"] == answer.json["classes"]
    assert told["beyond_chance"]["value"] == pytest.approx(told["found"]["value"] - told["chance"], abs=1e-9)
    assert told["beyond_chance"]["low"] < told["beyond_chance"]["high"]
    for each in told["classes"]:
        assert set(each["removed"]) == set(STANDARD_LEADS)
        assert 0.2 < sum(each["removed"].values()) / 12 < 0.35, "a quarter; tokens of equal rank go together"
    pictures = sorted(tmp_path.joinpath("pictures").glob("*.png"))
    assert sorted(map(Path, told["pictures"])) == pictures and pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)

    assert told["masker"] == "the masker learnt in 1 of 2 steps, from step 0 on"

    few = cardialign(*given, "--records", 3, plain=True)
    assert few.code == 0 and "share of each lead that the masker removes, of 0.3 of the record" in few.out


def test_a_run_that_is_not_there_is_said(cardialign: Callable[..., Any], shards: Path, tmp_path: Path) -> None:
    answer = cardialign("evaluate", "masker", tmp_path / "none", "--shards", shards, "--prompts", PROMPTS)
    assert answer.code != 0 and "has no verified checkpoint" in answer.json["problem"]
    assert "--run-dir of a finished run of method scar" in answer.json["remedy"]
