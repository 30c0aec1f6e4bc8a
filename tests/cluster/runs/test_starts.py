"""A run knows each command that took it, with its code and machine, and no secret of it."""

from __future__ import annotations

import getpass
import json
import platform
import shlex
import time
from pathlib import Path

import pytest

from cardialign.cluster.environment.versions import git_commit
from cardialign.cluster.runs import starts
from cardialign.pretrain.run.files import STARTS


def test_each_start_is_a_line_with_its_command_code_and_machine(tmp_path: Path) -> None:
    before = time.time()
    words = ["cardialign", "pretrain", "--run-dir", "my run", "--tracking-uri", "postgresql://me:s3cretword@host/db"]
    starts.note_start(tmp_path, starts.command_line(words), "2-8")
    starts.note_start(tmp_path, "", "1")
    first, second = starts.read_starts(tmp_path)
    assert before <= first.time <= second.time <= time.time()
    assert first.command.startswith("cardialign pretrain --run-dir 'my run' --tracking-uri ")
    assert "s3cretword" not in (tmp_path / STARTS).read_text()
    assert (first.workers, second.workers, second.command) == ("2-8", "1", "")
    assert first.host == platform.node() and first.user == getpass.getuser() and first.commit == git_commit()
    assert first.python == platform.python_version() and first.version and "CPU" in first.machine


def test_lines_that_are_no_start_are_passed_over(tmp_path: Path) -> None:
    assert starts.read_starts(tmp_path) == []
    odd_times = ["true", "1e300", "-1", "1" + "0" * 400]
    lines = ['{"time": 5, "command": 7, "host": "a", "more": 1}', "[1]", '{"host": "b"}', '{"tim']
    lines += [f'{{"time": {when}}}' for when in odd_times]
    (tmp_path / STARTS).write_text("\n".join(lines))
    assert starts.read_starts(tmp_path) == [starts.Start(5.0, host="a")]


def test_of_more_starts_than_are_read_the_newest_are_told(tmp_path: Path) -> None:
    line = json.dumps({"time": 1.0, "command": "x" * 1000})
    (tmp_path / STARTS).write_text(f"{line}\n" * 2000 + json.dumps({"time": 2.0, "command": "the last"}) + "\n")
    told = starts.read_starts(tmp_path)
    assert 1 < len(told) < 2001 and told[-1].command == "the last"


def test_a_user_without_a_name_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nameless() -> str:
        raise OSError("no entry for the user id 1234")  # what Python 3.13 says; KeyError before

    monkeypatch.setattr(getpass, "getuser", nameless)
    starts.note_start(tmp_path, "", "1")
    assert json.loads((tmp_path / STARTS).read_text())["user"] == ""


def test_mlflow_is_told_of_a_commit_only_where_the_code_is_that_of_the_commit() -> None:
    told = starts.mlflow_tags("cardialign pretrain", "0123abc")
    assert told["mlflow.source.git.commit"] == "0123abc" and told["mlflow.source.name"] == "cardialign pretrain"
    assert "cardialign pretrain" in told["mlflow.note.content"]
    given = "cardialign pretrain --recipe cardialign-demo --set 'data.folds=[1, 2]' --run-dir /runs/one --workers 2"
    long = starts.mlflow_tags(given, "")
    assert long["mlflow.source.name"] == "cardialign pretrain", "MLflow shows what is behind the last /"
    written = long["mlflow.note.content"].strip("`\n")
    assert shlex.split(written.replace("\\\n", " ")) == shlex.split(given), "a shell takes it as it stands"
    assert max(map(len, written.splitlines())) < 60 and written.splitlines()[0] == "cardialign pretrain \\"
    assert "mlflow.source.git.commit" not in starts.mlflow_tags("x", "0123abc+changed")
    assert set(starts.mlflow_tags("", "")) <= {"mlflow.user"}
