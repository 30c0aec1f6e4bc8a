"""`bench checkpoint` measures both ways of writing in one run, and leaves nothing; how long they take is its figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cardialign.data_shards.record import SignalSpec
from cardialign.pretrain.config import load_config
from cardialign.pretrain.methods.base import create_method
from tests.cluster.conftest import Answer

pytestmark = [pytest.mark.slow]


def test_both_ways_are_measured_and_nothing_is_left_on_the_disk(
    cardialign: Callable[..., Answer], tmp_path: Path
) -> None:
    own = ("text.encoder=minilm", "training.precision=fp32")  # a step in bf16 takes a minute on a processor without it
    words = [word for each in own for word in ("--set", each)]
    answer = cardialign("bench", "checkpoint", "--recipe", "cardialign-tiny", *words, "--out", tmp_path, "--rounds", 2)
    assert answer.code == 0, answer.err
    found, method = answer.json, create_method(load_config("cardialign-tiny", own), SignalSpec(500, 10))
    weights = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    assert found["recipe"] == "cardialign-tiny" and found["rounds"] == 2
    copies = 5  # of 4 bytes: the weights apart, those of the engine, the optimizer's own, and its two moments
    assert copies * 4 * weights < found["bytes"] < 1.05 * copies * 4 * weights
    for way in ("step", "background"):
        assert 0 < found[way]["pause_seconds"] <= found[way]["slowest_seconds"]
        assert found[way]["pause_seconds"] <= found[way]["commit_seconds"]
    assert found["ratio"] == found["background"]["pause_seconds"] / found["step"]["pause_seconds"]
    assert list(tmp_path.iterdir()) == []
    refused = cardialign("bench", "checkpoint", "--set", "text.encoder=nobody/nothing", "--out", tmp_path)
    assert refused.code != 0 and "nobody/nothing" in refused.json["problem"] and list(tmp_path.iterdir()) == []
