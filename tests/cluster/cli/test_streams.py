"""What data and machines do to the streams of a command never reaches the terminal raw, and never is our defect."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardialign.cluster import main as cli
from cardialign.cluster.cli.lines import json_line
from cardialign.cluster.cli.progress import Progress
from cardialign.cluster.commands import module_of
from cardialign.data_shards.errors import UserError
from cardialign.data_shards.shown import shown

EVIL = "\x1b]0;owned\x07\x1b[2Jname\r\x9b31m\u202egnp\u2066\udcff\x7f"
"""Sets the title, clears the screen, goes to the start of the line, colours, turns the writing, is no UTF-8."""
HARMLESS = "Überleitungsstörung, β-Blocker, 心電図, café\t½"


def runs(monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], dict[str, Any]]) -> None:
    monkeypatch.setattr(module_of("registry list"), "run", act)
    monkeypatch.delattr(module_of("registry list"), "summary")


def controls(text: str) -> set[str]:
    return {c for c in text if c not in "\n\t" and (not c.isprintable())}


def test_letters_of_every_language_stay_and_what_moves_the_cursor_is_written_out() -> None:
    assert shown(HARMLESS) == HARMLESS
    safe = shown(EVIL)
    assert not controls(safe) and "name" in safe
    for word in (r"\x1b]0;owned\x07", r"\x1b[2J", r"\r", r"\x9b31m", r"\u202e", r"\udcff", r"\x7f"):
        assert word in safe
    assert shown("a\nERROR root forged") == r"a\nERROR root forged", "one name is one line"
    assert shown("one\ntwo\x1b", lines=True) == "one\ntwo\\x1b"


@pytest.mark.parametrize("plain", [True, False])
def test_results_and_errors_show_no_escape_of_the_data(
    plain: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["registry", "list"] + ([] if plain else ["--json"])
    runs(monkeypatch, lambda args: {"name": EVIL, EVIL: [EVIL, {EVIL: 1}]})
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert not controls(out + err) and out.count("\n") == (3 if plain else 1)
    if not plain:
        assert json.loads(out)["name"] == EVIL, "a program gets the name as it is"

    def fail(args: Any) -> dict[str, Any]:
        raise UserError(f"record {EVIL} is torn", f"look at {EVIL}")

    monkeypatch.setattr(module_of("registry list"), "run", fail)
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert not controls(out + err) and "is torn" in err


def test_the_log_and_the_progress_show_no_escape_of_the_data() -> None:
    code = (
        "import logging, sys; from cardialign.cluster.cli.streams import open_streams; open_streams(logging.WARNING)\n"
        f"evil = {EVIL!r} + '\\nERROR root forged'\n"
        "logging.warning('record=%s', evil)\n"
        "import warnings; warnings.warn(evil)\n"
        "try: raise ValueError(evil)\n"
        "except ValueError: logging.exception('it failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not controls(done.stderr) and "Traceback" in done.stderr
    assert "\nERROR root forged" not in done.stderr.partition("it failed")[0]
    stream = io.StringIO()
    Progress(f"build {EVIL}", 2, stream=stream, now=iter([0.0, 20.0, 30.0]).__next__).update(1, 2, EVIL)
    assert not controls(stream.getvalue())


def test_json_of_a_delete_character_is_json() -> None:
    assert json.loads(shown(json_line({"a": "\x7f\x1b"}))) == {"a": "\x7f\x1b"}


def command(*words: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    line = f'"$0" -m cardialign "$@" {redirect}'
    env = {name: value for name, value in os.environ.items() if name not in environment or environment[name]}
    env |= {name: value for name, value in environment.items() if value}
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *words], capture_output=True, text=True, timeout=60, check=False, env=env
    )


@pytest.mark.parametrize(
    ("redirect", "environment", "code"),
    [
        (">&-", {}, 0),
        ("2>&-", {}, 0),
        (">&- 2>&-", {}, 0),
        (">/dev/full", {}, 1),
        ("", {"PYTHONIOENCODING": "ascii"}, 0),
        ("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, 0),
        ("", {"HOME": ""}, 0),
    ],
)
def test_streams_that_are_gone_or_narrow_are_no_defect(
    redirect: str, environment: dict[str, str], code: int, tmp_path: Path
) -> None:
    sitecustomize = "import cardialign.cluster.commands.doctor as d\nd.run = lambda args: {'name': 'β \\udcff'}\n"
    (tmp_path / "sitecustomize.py").write_text(sitecustomize + "del d.summary\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), str(Path(cli.__file__).parents[2])])
    done = command("doctor", redirect=redirect, PYTHONPATH=path, **environment)
    assert done.returncode == code, done.stderr
    assert not any(word in done.stderr for word in ("defect", "Traceback", "Exception ignored"))
    if code:
        assert "No space left on device" in done.stderr


def test_a_reader_that_goes_away_is_no_defect() -> None:
    for words in ("--help", "shards build --help"):
        done = command(*words.split(), redirect="| head -1")
        assert "defect" not in done.stderr and "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b.csv"), "a/b.csv: No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "work"), "work: Is a directory"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (TimeoutError(), "TimeoutError"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deep"),
        (ModuleNotFoundError("No module named 'boto3'"), "No module named 'boto3'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not UTF-8"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), "no Unicode text"),
        (json.JSONDecodeError("Expecting value", "", 0), "no JSON"),
    ],
)
def test_what_a_machine_causes_is_a_sentence_with_a_way_out(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: Any) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(module_of("registry list"), "run", fail)
    assert cli.main(["registry", "list"]) == 1
    said = capsys.readouterr().err
    assert told in said and "defect" not in said and len(said.split("remedy: ")[1].strip()) > 10


def test_what_nobody_foresaw_is_still_a_defect_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: Any) -> dict[str, Any]:
        raise AssertionError("an invariant")

    monkeypatch.setattr(module_of("registry list"), "run", fail)
    assert cli.main(["registry", "list"]) == 1
    assert "defect of ours" in capsys.readouterr().err
