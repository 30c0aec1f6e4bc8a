"""The helper that starts real ranks reports what went wrong, in time, and leaves nobody behind."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.support.processes import RankError, run_ranks

pytestmark = pytest.mark.processes


def sum_of_ranks(rank: int, world: int, offset: int) -> tuple[int, str, float]:
    value = torch.tensor([float(rank + offset)])
    dist.all_reduce(value)
    return rank, os.environ["WORLD_SIZE"], float(value)


def test_results_come_back_in_rank_order() -> None:
    assert run_ranks(3, sum_of_ranks, 10) == [(0, "3", 33.0), (1, "3", 33.0), (2, "3", 33.0)]


def fail_on_rank_1(rank: int, world: int) -> None:
    if rank == 1:
        raise RuntimeError("the reason itself")
    dist.all_reduce(torch.zeros(1))


def test_the_first_traceback_surfaces_and_the_waiting_rank_is_ended() -> None:
    started = time.monotonic()
    with pytest.raises(RankError, match=r"rank 1 of 2 failed first(.|\n)*the reason itself"):
        run_ranks(2, fail_on_rank_1, deadline=60)
    assert time.monotonic() - started < 40


def wait_forever(rank: int, world: int) -> None:
    signal.pause()


def test_a_deadline_names_the_ranks_that_were_late() -> None:
    with pytest.raises(RankError, match=r"ranks \[0\] of 1 were still running after 2 s"):
        run_ranks(1, wait_forever, deadline=2, init=False)


def die(rank: int, world: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_rank_is_reported_by_its_exit_code() -> None:
    with pytest.raises(RankError, match=r"\{0: -9\}"):
        run_ranks(1, die, init=False)
