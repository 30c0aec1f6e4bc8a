"""The benchmark's made-up reports: unit vectors with an offset, one similarity space, and a table that a plain search
confirms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.benchmarks.table import Row, markdown, measured_rows, plain
from cardialign.data_shards.benchmarks.text import Vectors, made_up_phrases, read_phrases
from cardialign.data_shards.benchmarks.word_counts import WordCounts
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.text.distant import most_distant, most_distant_of


def test_made_up_reports_sit_on_an_offset_that_centring_takes_away() -> None:
    phrases = made_up_phrases()
    assert len(phrases) == len(set(phrases)) > 300 and not any("{" in text for text in phrases)
    vectors = Vectors(WordCounts().embed(phrases), 500, seed=3)
    same = Vectors(WordCounts().embed(phrases), 500, seed=3)
    np.testing.assert_array_equal(vectors.embeddings, same.embeddings)
    np.testing.assert_allclose(np.linalg.norm(vectors.embeddings, axis=1), 1, atol=1e-5)
    ids = np.arange(500)
    upper = np.triu_indices(500, 1)
    raw, centred = (
        (vectors.embeddings @ vectors.embeddings.T)[upper],
        (vectors.centred(ids) @ vectors.centred(ids).T)[upper],
    )
    assert raw.mean() > 0.5 and abs(centred.mean()) < 0.1 and centred.std() > raw.std()


def test_a_row_tile_is_the_same_rows_of_the_whole_table(tmp_path: Path) -> None:
    vectors = Vectors(WordCounts().embed(made_up_phrases()), 400, seed=0).centred(np.arange(400))
    tile = most_distant_of(np.ascontiguousarray(vectors[100:164]), 100, vectors, 7, 128)
    np.testing.assert_array_equal(tile, most_distant(vectors, 7)[100:164])
    np.save(tmp_path / "vectors.npy", vectors)
    command = [sys.executable, "-m", "cardialign.data_shards.benchmarks.distant", str(tmp_path / "vectors.npy")]
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (
        figures["distant_reports"] == 400
        and figures["distant_core_minutes"] > 0
        and figures["distant_plain_core_minutes"] > 0
    )


def test_phrases_come_from_a_file_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text("Sinus rhythm\n\n Sinus rhythm \nAtrial fibrillation\n")
    assert read_phrases(path) == ["Atrial fibrillation", "Sinus rhythm"]
    path.write_text("\n")
    with pytest.raises(DataError, match="holds 0 phrases"):
        read_phrases(path)
    with pytest.raises(DataError, match="no-such"):
        read_phrases(tmp_path / "no-such.txt")


def test_a_row_says_whether_its_target_is_met_and_how_many_times_better_it_is() -> None:
    rows = (
        Row("rate", "rate", "records/s", at_least=100, against={"slow": "slow_rate", "never measured": "absent"}),
        Row("memory", "memory", "MB", below=500, against={"table": "table_memory"}),
        Row("size", "size", at_least=5, target_on_real=True),
        Row("time", "time", "s", lower_is_better=True, against={"plain": "plain_time"}),
        Row("not measured", "absent"),
    )
    figures = {
        "rate": 99.0,
        "slow_rate": 33.0,
        "memory": 499.0,
        "table_memory": 998.0,
        "size": 5.0,
        "time": 2.0,
        "plain_time": 8.0,
    }
    found = measured_rows(rows, figures, real=False)
    assert [row["met"] for row in found] == [False, True, None, None]
    assert [row["ratios"] for row in found] == [{"slow": 3.0}, {"table": 2.0}, {}, {"plain": 4.0}]
    assert measured_rows(rows, figures, real=True)[2]["met"] is True
    report = {
        "table": found,
        "records": 3,
        "samples": 5000,
        "rounds": 1,
        "given_records": False,
        "text_encoder": "minilm",
    }
    assert "| rate | 99 records/s | >= 100 | NO | 3 x slow |" in markdown(report)
    assert plain(report)[-1] == "targets missed here: rate"
