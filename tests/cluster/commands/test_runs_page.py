"""`cardialign runs page`: what a run directory and its evaluations say, on a page that needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cardialign.cluster.environment.versions import git_commit
from cardialign.cluster.runs.starts import note_start
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.pretrain.run.integrity import verify_export
from tests.cluster.conftest import Answer
from tests.support.compared import run_folder, zero_shot_file

Call = Callable[..., Answer]


@pytest.fixture
def run(exported: Path, tmp_path: Path) -> Path:
    """A finished run of 2 ranks on a CPU, started by a command, with an exported encoder."""
    folder = run_folder(tmp_path / "run")
    shutil.copytree(exported, folder / "export")
    note_start(folder, "cardialign pretrain --run-dir '<b onload=alert(1)>'", "2")
    return folder


def test_it_says_where_a_run_came_from_what_it_cost_and_what_it_tells(
    cardialign: Call, run: Path, tmp_path: Path
) -> None:
    page, result = tmp_path / "page.html", tmp_path / "zs.json"
    seen = {"status": "none", "note": "none of these records"}
    zero_shot_file(result, 1.2, encoder=verify_export(run / "export"), trained_on=seen)
    answer = cardialign("runs", "page", run, "--evaluation", result, "--price", "CPU=0.5", "--out", page)
    assert answer.code == 0 and answer.json["left_out"] == []
    text = page.read_text()
    assert "<script" not in text and "<b onload" not in text and "&lt;b onload=alert(1)&gt;" in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    facts = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", text))
    assert {"CardiAlign", "Started by", "Machine of the driver", "Workers"} <= set(facts)
    assert facts.get("Commit", "") == git_commit()  # none in an installed wheel
    # 30 steps of 8 records at 100 records/s on 2 cores: 4.8 core-seconds, at 0.5 an hour
    assert float(facts["Core-hours of steps"]) == pytest.approx(4.8 / 3600, rel=1e-2)
    assert float(facts["Price"]) == pytest.approx(2.4 / 3600, rel=1e-2) and facts["Energy"] == "not measured"
    assert facts["Records trained on, repeats included"] == "240"
    assert "zero-shot, PTB-XL super" in text


def test_a_run_without_an_export_says_which_data_it_has_from_its_tracking(
    cardialign: Call, run: Path, tmp_path: Path
) -> None:
    shutil.rmtree(run / "export")
    state = {"tags": {"data.fingerprint": "f00d" * 16, "data.selection": "beef" * 16}}
    (run / "tracking.json").write_text(json.dumps(state))
    assert cardialign("runs", "page", run, "--out", tmp_path / "page.html").code == 0
    text = (tmp_path / "page.html").read_text()
    assert "f00d" * 16 in text and "beef" * 16 in text


@pytest.mark.slow
def test_with_a_shard_set_it_shows_recordings_a_map_and_what_is_retrieved(
    cardialign: Call, run: Path, shards: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    answer = cardialign("runs", "page", run, "--shards", shards, "--records", 2, "--out", page)
    assert answer.code == 0 and answer.json["records_shown"] == 2 and answer.json["left_out"] == []
    text, opened = page.read_text(), ShardSet.open(shards)
    assert sum(f"<h3>{opened.key(row)}</h3>" in text for row in range(len(opened))) == 2
    assert text.count("Nearest reports") == 2 and "Map of" in text


def test_a_run_that_has_just_begun_has_a_page_that_says_what_is_missing(cardialign: Call, run: Path) -> None:
    shutil.rmtree(run / "export")
    (run / "metrics.jsonl").unlink()
    answer = cardialign("runs", "page", run, "--shards", run / "none", "--out", run.parent / "page.html")
    assert answer.code == 0 and "the run has no exported encoder" in answer.json["left_out"][-1]
    assert "the run has no exported encoder" in (run.parent / "page.html").read_text()


def test_a_result_of_another_encoder_and_odd_words_are_refused(cardialign: Call, run: Path, tmp_path: Path) -> None:
    zero_shot_file(tmp_path / "zs.json", 1.2, encoder="f" * 64, trained_on=None)
    page = tmp_path / "page.html"
    answer = cardialign("runs", "page", run, "--evaluation", tmp_path / "zs.json", "--out", page)
    assert answer.code == 1 and "another encoder (ffffffffffff)" in answer.json["problem"]
    zero_shot_file(tmp_path / "torn.json", 1.2, encoder=verify_export(run / "export"), trained_on={"status": "none"})
    answer = cardialign("runs", "page", run, "--evaluation", tmp_path / "torn.json", "--out", page)
    assert answer.code == 1 and "it lacks 'note'" in answer.json["problem"]
    assert "is no page" in cardialign("runs", "page", run, "--out", tmp_path / "page.png").json["problem"]
    assert "holds no run" in cardialign("runs", "page", tmp_path, "--out", page).json["problem"]
    assert "are of --shards" in cardialign("runs", "page", run, "--labels", "x", "--out", page).json["problem"]
    assert "no price" in cardialign("runs", "page", run, "--price", "x", "--out", page).json["problem"]
    assert not page.exists()
