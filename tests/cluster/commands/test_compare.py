"""From real evaluations to a page: what they keep beside their results pairs them, and names nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.data_shards.shard_set.shard_set import ShardSet

Call = Callable[..., Any]


@pytest.mark.slow
def test_evaluations_keep_what_pairs_them_and_nothing_that_names_a_record(
    cardialign: Call, exported: Path, shards: Path, tmp_path: Path
) -> None:
    words = ("evaluate", "zero-shot", "--encoder", exported, "--shards", shards, "--prompts", "virtual-findings-v2")
    answer = cardialign(*words, "--bootstrap", 20, "--baseline", "--seed", 3, "--out", tmp_path / "z.json")
    assert answer.code == 0, answer.err
    kept = tmp_path / "z.scores.safetensors"
    assert kept.stat().st_mode & 0o007 == 0, "no other user reads scores"
    opened = ShardSet.open(shards)
    content = kept.read_bytes() + (tmp_path / "z.json").read_bytes()
    assert not any(opened.key(row).encode() in content for row in range(len(opened)))
    assert not any(str(each).encode() in content for each in opened.patients if len(str(each)) > 3)
    found = cardialign("compare", f"ours={tmp_path / 'z.json'}", exported, "--out", tmp_path / "o", "--bootstrap", 20)
    assert found.code == 0, found.json
    (difference,) = found.json["differences"]
    gain = json.loads((tmp_path / "z.json").read_text())["difference"]["value"]
    sign = 1 if difference["mine"] == found.json["methods"][0] else -1
    assert sign * difference["difference"] == pytest.approx(gain, abs=1e-9)
    assert found.json["methods"][0] == exported.name or exported.parent.name in found.json["methods"][0]
