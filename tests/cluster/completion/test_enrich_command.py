"""`text enrich` by command, on top of other reports, and what the statistics of the bank then say of duplicates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.text.bank import build_text_bank
from tests.support.tiny_shards import HashingEncoder

Call = Callable[..., Any]


def test_enriched_reports_are_duplicates_no_more(cardialign: Call, cohort: Path, shards: Path, tmp_path: Path) -> None:
    made = cardialign("text", "enrich", shards, "--measurements", cohort, "--out", tmp_path / "one")
    assert made.code == 0 and made.json["enriched"] > 0.9 * made.json["with_report"]
    assert made.json["distinct_reports"]["after"] > made.json["distinct_reports"]["before"]
    twice = cardialign(
        *("text", "enrich", shards, "--measurements", cohort, "--out", tmp_path / "two", "--reports", tmp_path / "one")
    )
    assert twice.code == 0
    overlay = ShardSet.open(shards, reports=tmp_path / "two").overlay
    assert overlay is not None and [step["kind"] for step in overlay.made] == ["intervals", "intervals"]

    nothing = cardialign("text-bank", "stats", shards, "--reports", tmp_path / "one")
    assert nothing.code == 1 and "one has no text bank" in nothing.json["problem"]
    encoder = HashingEncoder()
    encoder.dim = 16
    build_text_bank(ShardSet.open(shards, reports=tmp_path / "one"), encoder)
    found = cardialign("text-bank", "stats", shards, "--reports", tmp_path / "one", "--global-batch", 16)
    assert found.code == 0 and found.json["reports"] == made.json["distinct_reports"]["after"]
    assert found.json["duplicate_pairs"] < 0.01


def test_what_is_no_table_is_said(cardialign: Call, shards: Path, tmp_path: Path) -> None:
    missing = cardialign("text", "enrich", shards, "--measurements", tmp_path, "--out", tmp_path / "out")
    assert missing.code == 1 and "no machine_measurements.csv at" in missing.json["problem"] and missing.json["remedy"]
