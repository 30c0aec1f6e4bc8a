"""The line by which the driver of a job says how its run stands: seldom, in one form, and read back from a log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cardialign.cluster.runs.reporting import StateLines, last_state, read_state, without_states


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_only_a_job_tells_and_at_most_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CARDIALIGN_JOB", raising=False)
    StateLines(tmp_path).look()
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("CARDIALIGN_JOB", "one-1")
    clock = Clock()
    lines = StateLines(tmp_path, 100, clock)
    told = []
    for second in range(3 * 3600):
        clock.seconds = 1000.0 + second
        lines.look(stopping=second == 10799, waits=lambda: "a node")
        if out := capsys.readouterr().out:
            told.append(second)
            state = last_state(out) or {}
            assert state["waits_for"] == "a node" and state["steps"] == 100 and state["run_dir"] == str(tmp_path)
    assert told[:3] == [0, 10, 20] and len(told) < 900 and told[-1] == 10799, "a stop is told at once"


def test_the_last_line_of_a_known_form_counts_and_readers_see_none() -> None:
    log = 'a\ncardialign-state 1 {"step": 1}\nb\ncardialign-state 1 {"step": 2}\ncardialign-state 1 {"st\n'
    later = 'cardialign-state 2 {"step": 3}\nnot a cardialign-state 1 {"step": 4}\n'
    assert last_state(log + later) == {"step": 2}
    assert without_states(log + later) == 'a\nb\nnot a cardialign-state 1 {"step": 4}\n'
    assert last_state("nothing") is None


def test_what_is_not_there_is_not_known(tmp_path: Path) -> None:
    state = read_state(tmp_path)
    assert state["step"] is None and state["eta_seconds"] is None and state["restarts"] == []
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n[1]\n")
    (tmp_path / "config.resolved.json").write_text('{"training": null}')
    assert read_state(tmp_path)["step"] == 0


@pytest.mark.parametrize(
    ("files", "phase"),
    [
        ({"STOP": "x"}, "stopping"),
        ({"failure.json": '{"problem": "no data"}'}, "failed"),
        ({"result.json": '{"stopped": true, "total_steps": 9}', "STOP": "x"}, "stopped"),
        ({"result.json": '{"stopped": false, "total_steps": 9}'}, "finished"),
    ],
)
def test_every_phase_of_a_run_has_its_word(tmp_path: Path, files: dict[str, str], phase: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    state = read_state(tmp_path)
    assert state["phase"] == phase
    assert state["problem"] == (json.loads(files["failure.json"])["problem"] if phase == "failed" else None)
