"""`cardialign runs list`: every run of a folder by what its files say; a damaged one hides no other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.conftest import Answer

Call = Callable[..., Answer]


def make_run(folder: Path, name: str, steps: int = 10, **files: Any) -> Path:
    folder.mkdir(parents=True)
    config = {"name": name, "method": {"name": "merl"}, "training": {"steps": steps, "global_batch": 4}}
    (folder / "config.resolved.json").write_text(json.dumps(config))
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text if isinstance(text, str) else json.dumps(text))
    return folder


def trace(*steps: int) -> str:
    return "".join(json.dumps({"step": step, "loss": 1 / step, "time": time.time()}) + "\n" for step in steps)


def test_every_run_below_a_folder_is_told_and_no_folder_within_a_run(cardialign: Call, tmp_path: Path) -> None:
    ended = {"steps": 10, "total_steps": 10, "stopped": False, "final_loss": 0.1}
    done = make_run(tmp_path / "a", "done", metrics__jsonl=trace(9, 10), result__json=ended)
    make_run(done / "earlier" / "1", "moved aside")
    problem = {"type": "DataError", "problem": "shard 3 is \x1b[31mgone\nsecond line", "remedy": "", "rank": 0}
    make_run(tmp_path / "group" / "b", "\x1b[2Jred", metrics__jsonl=trace(1, 2), failure__json=problem)
    make_run(tmp_path / "group" / "c", "torn", metrics__jsonl='{"step": 3}\n{"st', result__json="[1", method=1)
    (tmp_path / "notes").mkdir()
    found = cardialign("runs", "list", tmp_path).json["runs"]
    assert [(Path(each["run_dir"]).name, each["state"]) for each in found][:2] == [("a", "finished"), ("b", "failed")]
    assert len(found) == 3 and found[0]["loss"] == 0.1 and found[0]["steps"] == 10
    shown = cardialign("runs", "list", tmp_path, plain=True).out
    assert "\x1b" not in shown and "shard 3 is" in shown and "second line" not in shown and "10/10" in shown
    assert cardialign("runs", "list", tmp_path / "a", tmp_path).json["runs"] == found, "each once"


def test_a_folder_without_runs_and_one_that_is_not_there(cardialign: Call, tmp_path: Path) -> None:
    assert cardialign("runs", "list", tmp_path).json["runs"] == []
    assert cardialign("runs", "list", tmp_path, plain=True).out.strip() == "no runs"
    assert "is no folder" in cardialign("runs", "list", tmp_path / "x").json["problem"]
