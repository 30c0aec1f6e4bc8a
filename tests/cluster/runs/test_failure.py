"""What driver and workers leave for each other: errors with their class, stop requests, notes of processes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from cardialign.cluster.runs.failure import KINDS, clear_requests, read_failure, request_stop, write_failure
from cardialign.cluster.runs.observer import RayObserver
from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.files import write_json
from cardialign.pretrain.run.files import FAILURE, RESULT, STOP
from cardialign.pretrain.training.alarms import CollapseError


def test_an_error_comes_back_with_its_class_and_words(tmp_path: Path) -> None:
    assert read_failure(tmp_path) is None
    write_failure(tmp_path, CollapseError("rank fell", "lengthen the warm-up"), rank=1)
    error = read_failure(tmp_path)
    assert type(error) is CollapseError and (error.problem, error.remedy) == ("rank fell", "lengthen the warm-up")


def test_the_first_rank_to_fail_is_the_one_that_is_told(tmp_path: Path) -> None:
    write_failure(tmp_path, DataError("shard 3 is torn", "verify"), rank=1)
    write_failure(tmp_path, UserError("a peer has gone", ""), rank=0)
    error = read_failure(tmp_path)
    assert type(error) is DataError and error.problem == "shard 3 is torn"
    assert [path.name for path in tmp_path.iterdir()] == [FAILURE]


def test_an_error_of_an_unknown_class_is_still_a_user_error(tmp_path: Path) -> None:
    write_json(tmp_path / FAILURE, {"type": "elsewhere:StrangeError", "problem": "p", "remedy": "r", "rank": 0})
    error = read_failure(tmp_path)
    assert type(error) is UserError and error.problem == "p"


def test_a_failure_file_is_data_and_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"__import__('pathlib').Path({str(mark)!r}).write_text('x')"
    for kind in ("timeit:timeit", "builtins:exec", "os:system", "cardialign.data_shards.errors:os.system", "", None):
        write_json(tmp_path / FAILURE, {"type": kind, "problem": "pass", "remedy": code})
        error = read_failure(tmp_path)
        assert type(error) is UserError and error.problem == "pass"
    assert not mark.exists()


def test_what_a_failure_file_says_cannot_steer_a_terminal_or_fill_it(tmp_path: Path) -> None:
    write_json(tmp_path / FAILURE, {"type": "DataError", "problem": "\x1b[2Jgone\nnext line", "remedy": "x" * 10**6})
    error = read_failure(tmp_path)
    assert error is not None and error.problem == "\\x1b[2Jgone\nnext line" and len(error.remedy) < 10**5
    write_json(tmp_path / FAILURE, {})
    assert type(read_failure(tmp_path)) is UserError


def test_every_error_of_ours_has_its_kind_in_the_table() -> None:
    found = {}
    for name, module in KINDS.items():
        found[name] = getattr(importlib.import_module(module), name)
    waiting, subclasses = [UserError], set()
    while waiting:
        kind = waiting.pop()
        subclasses.add(kind)
        waiting += [each for each in kind.__subclasses__() if each.__module__.startswith("cardialign.")]
    assert set(found.values()) >= subclasses
    assert all(issubclass(kind, UserError) for kind in found.values())


def test_a_stop_request_reaches_the_loop_and_a_new_start_forgets_it(tmp_path: Path) -> None:
    assert RayObserver(tmp_path).should_stop() is False
    request_stop(tmp_path, "SIGTERM")
    assert RayObserver(tmp_path).should_stop() is True
    write_json(tmp_path / RESULT, {})
    clear_requests(tmp_path)
    assert not (tmp_path / STOP).exists() and not (tmp_path / RESULT).exists()
    assert RayObserver(tmp_path).should_stop() is False


def test_a_failure_says_no_secret_and_obeys_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "pl4nted-key")
    told = "no pl4nted-key\nfor https://me:pl4nted@host/set?sig=pl4nted2 \x1b[2J"
    write_failure(tmp_path, DataError(told, "ask pl4nted-key"), rank=0)
    assert "pl4nted" not in (tmp_path / FAILURE).read_text()
    error = read_failure(tmp_path)
    assert error is not None and error.problem.startswith("no ***\nfor https://") and error.problem.endswith("\\x1b[2J")
