"""`cardialign bench data` prints a table of every figure with its target and its baselines.

It prints the same as Markdown, or all of it as one JSON object, when asked to.
"""

from __future__ import annotations

from pathlib import Path

from cardialign.cluster.commands.bench import data as bench_data


def test_a_shard_set_at_a_glance(cardialign, shards: Path) -> None:
    words = (
        "bench",
        "data",
        shards,
        "--records",
        12,
        "--rounds",
        1,
        "--op",
        "codec",
        "--op",
        "similarity",
        "--encoder",
        "none",
    )
    answer = cardialign(*words)
    assert answer.code == 0, answer.err
    table = {row["figure"]: row for row in answer.json["table"]}
    decode = table["decode_records_per_s_per_core"]
    assert decode["target"] == ">= 5,000" and decode["ratios"].keys() == {"zlib"}
    assert 0 < table["low_rank_mean_error"]["value"] < 0.1 and "stream_records_per_s_per_core" not in table
    markdown = bench_data.summary({**answer.json, "markdown": True})
    assert markdown[0].startswith("12 given recordings of 12 x 250 samples") and any(
        line.startswith("| decode | ") for line in markdown
    )
    plain = bench_data.summary({**answer.json, "markdown": False})
    assert any(line.startswith("targets missed here: ") for line in plain) and not any(
        line.startswith("|") for line in plain
    )


def test_what_cannot_be_measured_is_refused(cardialign, shards: Path, tmp_path: Path) -> None:
    assert cardialign("bench", "data", shards, "--rounds", 0).code == 2
    unknown = cardialign("bench", "data", shards, "--op", "levitation")
    assert unknown.code == 2 and "codec, build, stream, wait, start, similarity, distant" in unknown.json["remedy"]
    phrases = ("--phrases", tmp_path / "none.txt", "--encoder", "none", "--records", 4, "--op", "similarity")
    answer = cardialign("bench", "data", shards, *phrases)
    assert answer.code == 1 and "cannot be read" in answer.json["problem"]
