"""`cardialign evaluate zero-shot`: what it refuses before it scores, and what it says beside its figures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.export.trained_on import TrainedOn, chosen, trained_set
from cardialign.pretrain.run.integrity import write_digests
from tests.cluster.conftest import Answer
from tests.support.tiny_set import export_untrained

Call = Callable[..., Answer]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """An exported encoder that says that it was trained on the whole set."""
    folder = export_untrained(tmp_path_factory.mktemp("trained") / "encoder")
    opened = ShardSet.open(shards)
    seen = TrainedOn((trained_set(opened, np.arange(len(opened)), chosen(None, None)),))
    seen.write(folder)
    provenance = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps({**provenance, "trained_on": seen.to_dict()}))
    write_digests(folder)
    return folder


def words(encoder: Path, shards: Path, *more: object) -> tuple[object, ...]:
    chosen_words = ("evaluate", "zero-shot", "--encoder", encoder, "--shards", shards, "--bootstrap", 5)
    return (*chosen_words, "--prompts", "virtual-findings-v2", *more)


def test_what_an_encoder_was_trained_on_is_scored_only_when_asked_for(
    cardialign: Call, trained: Path, shards: Path, tmp_path: Path
) -> None:
    refused = cardialign(*words(trained, shards, "--out", tmp_path / "a.json"))
    assert refused.code == 1 and "was trained on" in refused.json["problem"]
    assert "--allow-trained" in refused.json["remedy"] and not (tmp_path / "a.json").exists()
    allowed = cardialign(*words(trained, shards, "--allow-trained", "--out", tmp_path / "a.json"), plain=True)
    assert allowed.code == 0 and "TRAINED ON WHAT IT IS SCORED ON" in allowed.out
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["trained_on"]["status"] == "found" and result["trained_on"]["records"] == result["n"]
    assert (tmp_path / "a.scores.safetensors").stat().st_mode & 0o007 == 0, "no other user reads its scores"
    beside = cardialign("compare", trained, tmp_path / "a.json", "--out", tmp_path / "o", "--bootstrap", 5)
    assert beside.code == 0 and beside.json["figures"][0]["task"] == "virtual-findings-v2", beside.json
    (told,) = beside.json["not_comparable"]
    assert "trained on what it is scored on" in told


def test_an_export_that_says_nothing_is_scored_and_called_unknown(
    cardialign: Call, exported: Path, shards: Path
) -> None:
    answer = cardialign(*words(exported, shards), plain=True)
    assert answer.code == 0 and "unknown whether on some of these" in answer.out


@pytest.mark.parametrize("place", ["file/below/it.json", "x" * 300 + ".json", "/proc/here/it.json"])
def test_a_place_that_takes_no_file_is_told_before_anything_is_scored(
    cardialign: Call, shards: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    answer = cardialign(*words(tmp_path / "no encoder at all", shards, "--out", tmp_path / place))
    assert answer.code == 1 and "--out" in answer.json["problem"] and "cannot be written" in answer.json["problem"]


def test_a_device_is_written_to_and_stays_one(cardialign: Call, exported: Path, shards: Path) -> None:
    assert cardialign(*words(exported, shards, "--out", os.devnull)).code == 0
    assert Path(os.devnull).is_char_device()
