"""What is written is its owner's alone; a team that says so shares through its group, and nobody with other users."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster.environment.handed_on import adopt_submitted


def open_to_others(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.lstat().st_mode & 0o007]


@pytest.mark.parametrize(
    ("umask", "share", "group"),
    [(0o022, "", 0), (0o002, "", 0), (0o077, "group", 0), (0o022, "group", 0o050), (0o027, "", 0o050)],
)
def test_a_command_writes_nothing_that_others_may_read(
    cardialign: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int, share: str, group: int
) -> None:
    monkeypatch.setenv("CARDIALIGN_SHARE", share)
    before = os.umask(umask)
    try:
        assert cardialign("cohort", tmp_path / "cohort", "--patients", "2", "--sampling-rate", "100").code == 0
        words = ["--labels", tmp_path / "cohort" / "truth.csv", "--sampling-rate", "100", "--workers", "1"]
        made = cardialign(
            "shards", "build", "mimic-iv-ecg", "--root", tmp_path / "cohort", "--out", tmp_path / "set", *words
        )
        assert made.code == 0
        assert os.umask(umask) == umask, "a program that calls us keeps its own"
    finally:
        os.umask(before)
    assert open_to_others(tmp_path) == []
    assert (tmp_path / "set").stat().st_mode & 0o070 == group, "a team shares through its group"


def test_what_somebody_has_opened_stays_open(cardialign: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort").chmod(0o755)
    cardialign("cohort", tmp_path / "cohort" / "new", "--patients", "1", "--sampling-rate", "100")
    assert (tmp_path / "cohort").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o600), (0o077, 0o600), (0o027, 0o640)])
def test_the_log_of_a_submitted_driver_and_the_files_of_a_worker_are_closed(
    tmp_path: Path, umask: int, mode: int
) -> None:
    log, file = tmp_path / "job-driver.log", tmp_path / "made-by-the-worker"
    program = (
        "from cardialign.cluster.environment.handed_on import adopt, adopt_submitted; import os, pathlib, sys\n"
        f"adopt_submitted(); pathlib.Path({str(file)!r}).touch(); print(os.environ['NCCL_DEBUG'])"
    )
    environment = {**os.environ, "CARDIALIGN_SUBMITTED_ENV": '{"NCCL_DEBUG": "INFO"}', "CARDIALIGN_SHARE": ""}
    with log.open("w") as stream:
        log.chmod(0o644)
        subprocess.run([sys.executable, "-c", program], env=environment, stdout=stream, check=True, umask=umask)
    assert log.read_text() == "INFO\n" and log.stat().st_mode & 0o777 == mode
    assert file.stat().st_mode & 0o777 == mode


def test_a_submitted_driver_keeps_what_its_node_has_set() -> None:
    node = {"NCCL_DEBUG": "WARN", "CARDIALIGN_SUBMITTED_ENV": '{"NCCL_DEBUG": "INFO", "HF_ENDPOINT": "https://mirror"}'}
    assert adopt_submitted(node) == ["HF_ENDPOINT"]
    assert node == {"NCCL_DEBUG": "WARN", "HF_ENDPOINT": "https://mirror"}
    assert adopt_submitted(node) == []
