"""Where the time of a step goes, by the clock of each of two real ranks, and that measuring touches nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cardialign.cluster.watching.cause import cause_of
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.run.figures import RankFigures, read_figures
from cardialign.pretrain.training.engine import Workers
from cardialign.pretrain.training.exchange import ExchangeClock
from cardialign.pretrain.training.step_clock import StepClock
from tests.support.processes import run_ranks

pytestmark = pytest.mark.processes
STEPS, NAP = 6, 0.02
LATE, SLOW, PAUSED = 0, 1, 3
"""Rank 0 waits one nap for each batch, rank 1 works three naps a step, and after step 3 both pause for one."""


def batch(step: int, queue: float) -> Batch:
    rows, none = np.arange(2), np.zeros(2, np.float32)
    shards = {"shard-a.tar": (0.004, 1), "shard-b.tar": (0.001, 1)}
    return Batch(
        step, rows, none, none, none, rows, none, none, rows,
        {"queue": queue, "read": 0.005, "decode": 0.003}, (0.004, "shard-a.tar"), shards,
    )  # fmt: skip


def clocked(rank: int, world: int, run_dir: Path) -> tuple[list[float], bool]:
    """The sums that the collectives gave, and whether torch is as it was."""
    calls = (dist.distributed_c10d.Work, dist.ProcessGroup)
    before = [dict(vars(each)) for each in calls]
    clock = StepClock(4, Workers(rank, world, torch.device("cpu")))
    sums = []

    def batches() -> Iterator[Batch]:
        for step in range(STEPS):
            began = time.perf_counter()
            time.sleep(NAP if rank == LATE else 0.0)
            queue = time.perf_counter() - began
            dist.all_reduce(torch.ones(1))  # all ranks have a batch
            yield batch(step, queue)

    with clock:
        for one in clock.waits_for(batches()):
            time.sleep(3 * NAP if rank == SLOW else 0.0)
            total = torch.full((1,), float(rank + one.step))
            dist.all_reduce(total)
            handle = dist.all_reduce(total, async_op=True)
            handle.wait()
            sums.append(float(total))
            clock.step(one)
            if one.step == PAUSED:
                with clock.checkpointing():
                    time.sleep(NAP)
                    dist.barrier()  # of the checkpoint: not the exchange's time
        clock.tell(run_dir, STEPS, 10, now=True)
    untouched = [dict(vars(each)) for each in calls] == before
    gathered = [torch.zeros(1), torch.zeros(1)]
    dist.all_gather(gathered, torch.full((1,), float(rank)))
    dist.broadcast(gathered[0], src=1)
    return sums, untouched and float(gathered[1]) == 1.0


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[RankFigures], list[tuple[list[float], bool]]]:
    run_dir = tmp_path_factory.mktemp("clocked")
    return_values = run_ranks(2, clocked, run_dir)
    return read_figures(run_dir), return_values


def test_the_time_of_a_step_is_told_apart_by_who_waits_for_what(told) -> None:
    first, second = told[0]
    counted = STEPS - 1  # the first builds what the others find
    for rank in (first, second):
        assert (rank.window_steps, rank.step, rank.steps, rank.world_size) == (counted, STEPS, 10, 2)
        parts = rank.data + rank.agree + rank.exchange + rank.own
        assert parts == pytest.approx(rank.window_seconds) and rank.p99 >= rank.p50 >= 4 * NAP
        assert rank.pause >= NAP and rank.pause_interval > rank.pause
        assert rank.totals["steps"] == STEPS and rank.totals["checkpoint"] == pytest.approx(rank.pause)
        assert (rank.shard, rank.shard_reads, rank.reads) == ("shard-a.tar", counted, 2 * counted)
    assert first.data >= counted * NAP > second.data and second.agree >= 0.8 * counted * NAP
    assert second.own >= counted * 3 * NAP > first.own and first.exchange >= 0.8 * counted * 3 * NAP


def test_the_slow_rank_is_found_beside_data_that_are_late(told) -> None:
    cause = cause_of(told[0])
    assert cause is not None and (cause.word, cause.rank) == ("straggler", SLOW), cause
    assert cause.shares["data"] > 0.1, "a nap of four"


def test_collectives_give_what_they_gave_and_torch_is_left_as_it_was(told) -> None:
    for sums, untouched in told[1]:
        assert sums == [2.0 * (1 + 2 * step) for step in range(STEPS)] and untouched


def on_device(rank: int, world: int) -> tuple[bool, float, float]:
    """(known without waiting, seconds in the collective, seconds of the kernel before it)."""
    dist.init_process_group("nccl")
    device = torch.device("cuda", 0)
    total = torch.ones(4, device=device)
    dist.all_reduce(total)  # the first builds the communicator
    with ExchangeClock(device) as clock:
        clock.take()
        begin = clock.mark()
        torch.cuda._sleep(100_000_000)
        end = clock.mark()
        dist.all_reduce(total)
        waited = clock.take()
        early = waited.passed
        torch.cuda.synchronize()
        assert waited.passed and float(total[0]) == 1.0
        return early, waited.seconds, begin.elapsed_time(end) / 1000.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_kernels_before_a_collective_are_the_ranks_own_time() -> None:
    ((early, waited, kernel),) = run_ranks(1, on_device, init=False)
    assert not early, "nothing has waited for the device"
    assert kernel > 0.02 and 0 < waited < kernel / 4


def test_what_is_heard_of_a_checkpoint_later_belongs_to_its_pause_and_the_commit_is_told_apart():
    clock = StepClock(8, Workers(0, 1, torch.device("cpu")))
    with clock.checkpointing():
        time.sleep(0.02)
    first = clock.pause
    time.sleep(0.1)
    with clock.checkpointing(goes_on=True):
        time.sleep(0.02)
    assert first + 0.02 <= clock.pause <= clock.pause_interval - 0.1
    told = clock.report()
    assert told["checkpoint_pause_seconds"] == clock.pause and "checkpoint_commit_seconds" not in told
    clock.commit = 7.0
    assert clock.report()["checkpoint_commit_seconds"] == 7.0
