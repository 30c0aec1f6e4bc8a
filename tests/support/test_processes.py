"""The helper that starts real ranks reports what went wrong, in time, and leaves nobody behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

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


def leave_everything_changed(rank: int, world: int) -> dict[str, object]:
    """What a job finds, before it changes all of it."""
    found = {
        "parent": os.getppid(),
        "environment": os.environ.get("LEFT_BEHIND"),
        "threads": torch.get_num_threads(),
        "attribute": hasattr(torch, "left_behind"),
        "type": torch.get_default_dtype(),
        "drawn": torch.rand(3).tolist(),
        "group": dist.is_initialized(),
    }
    os.environ["LEFT_BEHIND"] = "1"
    torch.left_behind = True  # type: ignore[attr-defined]
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method="env://")
    dist.barrier()  # rank 0 has the store that the others read: it may not end before they have
    return found


def test_a_job_finds_nothing_of_the_job_before_and_imports_nothing_again() -> None:
    first, second = (run_ranks(2, leave_everything_changed, init=False) for _ in range(2))
    assert first == second
    assert [found["environment"] for found in second] == [None, None]
    assert not any(found["group"] or found["attribute"] for found in second)
    assert {found["threads"] for found in second} == {1}
    assert len({found["parent"] for found in first + second}) == 1, (
        "all are forks of one server that has imported torch"
    )
    assert os.getpid() not in {found["parent"] for found in second}


@pytest.mark.parametrize(("job", "deadline"), [(fail_on_rank_1, 60), (wait_forever, 2), (die, 60)])
def test_after_a_job_that_failed_hung_or_died_the_next_one_is_well(job: Callable[..., None], deadline: float) -> None:
    with pytest.raises(RankError):
        run_ranks(2, job, deadline=deadline)
    assert run_ranks(2, sum_of_ranks, 1) == [(0, "2", 3.0), (1, "2", 3.0)]


def pid_of(rank: int, world: int, folder: Path) -> None:
    (folder / str(rank)).write_text(str(os.getpid()))
    if rank == 0:
        signal.pause()


def test_no_rank_outlives_its_job(tmp_path: Path) -> None:
    with pytest.raises(RankError, match=r"ranks \[0\] of 2 were still running"):
        run_ranks(2, pid_of, tmp_path, deadline=5, init=False)
    for rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / str(rank)).read_text()), 0)


def value_at_import(rank: int, world: int) -> tuple[str, int]:
    from tests.support import set_at_import

    return set_at_import.VALUE, os.getppid()


def test_fresh_ranks_have_their_environment_before_they_import_anything() -> None:
    values = run_ranks(1, value_at_import, environment={"READ_AT_IMPORT": "there"}, fresh=True, init=False)
    assert values == [("there", os.getpid())]
    assert "READ_AT_IMPORT" not in os.environ
