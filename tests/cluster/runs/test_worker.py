"""A group that is asked to make room for a larger one stops at a checkpoint, says so, and waits to be ended."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from cardialign.cluster.runs.failure import clear_requests
from cardialign.cluster.runs.observer import RayObserver
from cardialign.cluster.runs.worker import _await_successor
from cardialign.pretrain.run.files import RESIZE, STOP


def test_both_requests_stop_a_rank_and_a_new_start_knows_neither(tmp_path: Path) -> None:
    assert not RayObserver(tmp_path).should_stop()
    for name in (RESIZE, STOP):
        (tmp_path / name).write_text("{}")
        assert RayObserver(tmp_path).should_stop(), name
        clear_requests(tmp_path)
        assert not RayObserver(tmp_path).should_stop()


def test_a_rank_without_such_a_request_waits_for_nobody(tmp_path: Path) -> None:
    _await_successor(tmp_path, 0, 40)
    assert list(tmp_path.iterdir()) == []


def test_rank_0_says_where_it_has_stopped_and_a_stop_ends_the_wait_of_all(tmp_path: Path) -> None:
    (tmp_path / RESIZE).write_text('{"workers": 4}')
    ranks = [threading.Thread(target=_await_successor, args=(tmp_path, rank, 40), daemon=True) for rank in (1, 0)]
    ranks[0].start()
    ranks[0].join(0.5)
    assert json.loads((tmp_path / RESIZE).read_text()) == {"workers": 4}, "rank 1 leaves that to rank 0"
    ranks[1].start()
    ranks[1].join(0.5)
    assert json.loads((tmp_path / RESIZE).read_text()) == {"workers": 4, "step": 40}
    assert all(rank.is_alive() for rank in ranks), "to return would be the end of the run"
    (tmp_path / STOP).write_text("SIGTERM")
    for rank in ranks:
        rank.join(10)
    assert not any(rank.is_alive() for rank in ranks)
