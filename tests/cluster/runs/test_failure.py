"""What driver and workers leave for each other: errors with their class, stop requests, notes of processes."""

from __future__ import annotations

from pathlib import Path

from cardialign.cluster.runs.failure import clear_requests, read_failure, request_stop, write_failure
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


def test_a_stop_request_reaches_the_loop_and_a_new_start_forgets_it(tmp_path: Path) -> None:
    assert RayObserver(tmp_path).should_stop() is False
    request_stop(tmp_path, "SIGTERM")
    assert RayObserver(tmp_path).should_stop() is True
    write_json(tmp_path / RESULT, {})
    clear_requests(tmp_path)
    assert not (tmp_path / STOP).exists() and not (tmp_path / RESULT).exists()
    assert RayObserver(tmp_path).should_stop() is False
