"""`cardialign evaluate zero-shot --protocol merl-v1:...` from published label files to a table.

The sets hold a part of the records.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import Answer
from tests.support.published_files import make_set, write_label_files
from tests.support.tiny_set import SPEC

Call = Callable[..., Answer]
RECORDS = {"cpsc2018": [f"A{i:04d}" for i in range(1, 25)], "csn": [f"JS{i:05d}" for i in range(1, 25)]}


@pytest.mark.parametrize("task", ["cpsc2018", "csn"])
def test_a_protocol_runs_on_what_is_there(cardialign: Call, exported: Path, tmp_path: Path, task: str) -> None:
    make_set(tmp_path, task, RECORDS[task][:20], SPEC)
    labels = write_label_files(tmp_path / "labels", task, "test", RECORDS[task])
    words = ("evaluate", "zero-shot", "--encoder", exported, "--shards", tmp_path / "set", "--bootstrap", 10)
    answer = cardialign(
        *words, "--protocol", f"merl-v1:{task}", "--label-files", labels, "--out", tmp_path / "result.json"
    )
    assert answer.code == 0, answer.err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["n"] == 20 and 0 <= result["macro"] <= 1
    facts = result["protocol"]
    assert (facts["protocol"], facts["task"], facts["split"], facts["published"], facts["present"]) == (
        "merl-v1",
        task,
        "test",
        24,
        20,
    )
    assert facts["missing_examples"] == RECORDS[task][20:] and "4 of 24 records are missing" in facts["deviations"]
    assert (
        facts["note"]
        == f"20 of 24 test records are in this shard set; 4 are not, such as {', '.join(RECORDS[task][20:])}"
    )
    assert result["ledger"][0]["line"].startswith(f"ledger encoder x merl-v1:{task}, pretraining: unknown (its export")
    assert result["test_opened"]["times"] == 1
    if task == "csn":
        again = cardialign(*words, "--protocol", f"merl-v1:{task}", "--label-files", labels, plain=True).out
        assert result["ledger"][0]["line"] in again and f"TEST RECORDS OF merl-v1:{task} OPENED 2 TIMES" in again
        several = cardialign(*words, "--protocol", "merl-v1", "--label-files", labels)
        assert several.code == 2 and "merl-v1:csn" in several.json["remedy"]
