"""No code block of the README is without its test."""

from __future__ import annotations

from tests.support.readme import block_with, blocks


def test_every_block_belongs_to_a_test() -> None:
    told = ["make demo", "make test", "cardialign doctor", '"$PTB_XL"', '"$SHARDS"', '"$MIMIC"', "for recipe in"]
    assert len(blocks("bash")) == len(told) and all(block_with(word) for word in told)
    assert len(blocks("python")) == 1
