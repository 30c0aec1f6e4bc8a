"""A checkpoint that is written behind the steps holds them up for a tenth of the time, measured in one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import Answer

pytestmark = [pytest.mark.slow]


def test_the_pause_is_a_tenth_and_nothing_is_left_on_the_disk(
    cardialign: Callable[..., Answer], tmp_path: Path
) -> None:
    words = ("bench", "checkpoint", "--set", "text.encoder=minilm", "--out", tmp_path, "--rounds", 2)
    answer = cardialign(*words)
    assert answer.code == 0, answer.err
    found = answer.json
    assert found["recipe"] == "cardialign-small" and 200 * 2**20 < found["bytes"] < 300 * 2**20
    assert found["step"]["commit_seconds"] == pytest.approx(found["step"]["pause_seconds"], rel=0.2)
    assert found["background"]["commit_seconds"] > 2 * found["background"]["pause_seconds"]
    assert found["ratio"] < 0.15, "a tenth is promised; a busy machine may need a little more"
    assert list(tmp_path.iterdir()) == []
    refused = cardialign("bench", "checkpoint", "--set", "text.encoder=nobody/nothing", "--out", tmp_path)
    assert refused.code != 0 and "nobody/nothing" in refused.json["problem"] and list(tmp_path.iterdir()) == []
