"""`cardialign replay`: what it prints of a step, and what it says of runs and steps that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cardialign.cluster.commands.replay import summary
from tests.cluster.conftest import Answer
from tests.support.checkpoints import nothing_changes

Call = Callable[..., Answer]


def record(name: str, most: float, finite: bool = True) -> dict[str, Any]:
    return {
        "record": name, "row": 1, "shard": "shard-000001.tar", "report_number": 3, "leads": 12, "samples": 250,
        "not_finite": 0, "min_mv": -1.0, "max_mv": most, "mean_mv": 0.0, "std_mv": 0.2, "features_finite": finite,
    }  # fmt: skip


def test_the_oddest_record_comes_first_and_other_records_are_shouted() -> None:
    result = {
        "step": 7, "checkpoint": 6, "loss": "nan", "gradient_norm": "inf", "same_batch": False,
        "first": {"where": "forward", "module": "ecg", "what": "ecg (Encoder): nan"},
        "written_down": {"loss": "nan", "gradient_norm": "inf", "world_size": 2},
        "ranks": [{"rank": 0, "records": [*(record(f"r{n}", 2.0) for n in range(30)), record("odd", 1e22, False)]}],
    }  # fmt: skip
    lines = summary(result)
    assert lines[0] == "step 7, made again from the checkpoint of step 6"
    assert "first not finite: forward: ecg (Encoder): nan" in lines and any("OTHER RECORDS" in each for each in lines)
    first = lines[lines.index("records, the oddest first:") + 1]
    assert first.split()[0] == "odd" and "1e+22 mV" in first and "features not finite" in first
    assert lines[-1] == "  and 11 more (--json)"


def test_what_is_no_run_or_no_step_of_it_is_said(cardialign: Call, tmp_path: Path) -> None:
    missing = cardialign("replay", tmp_path / "nowhere", 3)
    assert missing.code == 1 and "nowhere" in missing.json["problem"]
    assert cardialign("replay", tmp_path, 0).code == 2 and cardialign("replay", tmp_path, "two").code == 2
    with nothing_changes(tmp_path):
        empty = cardialign("replay", tmp_path, 3)
    assert empty.code == 2 and "holds no run" in empty.json["problem"]
    (tmp_path / "config.resolved.json").write_text(json.dumps({"training": {"steps": 9}}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 1.0}\n')
    with nothing_changes(tmp_path):
        late = cardialign("replay", tmp_path, 4)
    assert late.code == 2 and "has made 2 steps, not 4" in late.json["problem"]
