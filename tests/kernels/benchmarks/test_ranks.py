"""The schemes over ranks are measured in real processes, and a rank that fails or hangs ends them all with a reason."""

from __future__ import annotations

import time

import pytest
import torch

from cardialign.kernels.benchmarks.cases import measure
from cardialign.kernels.benchmarks.ranks import cases, run_processes

CPU = torch.device("cpu")


@pytest.mark.processes
@pytest.mark.slow
def test_both_schemes_are_measured_by_real_ranks() -> None:
    (case,) = cases(CPU, quick=True)
    gather, ring = measure(case, CPU)
    assert (gather["implementation"], ring["implementation"]) == ("gather", "ring")
    for row in (gather, ring):
        assert row["both_ms"] >= row["backward_ms"] > 0 and row["forward_ms"] > 0 and row["rounds"] == 1
        # each of the two ranks computes half of the 64 x 64 logits
        assert row["forward_flop_s"] * row["forward_ms"] == pytest.approx(1e3 * 2 * 32 * 64 * (256 + 128))
    assert ring["speedup"] == pytest.approx(gather["both_ms"] / ring["both_ms"])
    assert gather["auto"] and not ring["auto"]  # a batch this small is gathered


@pytest.mark.processes
def test_a_rank_that_fails_ends_the_others_and_shows_its_last_lines() -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1 of 2 failed:\nno room at this inn"):
        run_processes(2, "tests.support.kernels.failing_rank", {"0": "hang", "1": "fail"}, deadline=30)
    assert time.monotonic() - began < 25
    with pytest.raises(RuntimeError, match=r"rank 0 of 1 was still running after 0\.3 s"):
        run_processes(1, "tests.support.kernels.failing_rank", {"0": "hang"}, deadline=0.3)


def test_gpus_that_are_too_few_are_counted() -> None:
    if torch.cuda.device_count() >= 2:
        pytest.skip("this machine has the GPUs")
    case = cases(torch.device("cuda"), quick=False)[0]
    rows = measure(case, torch.device("cuda"))
    assert [row["note"] for row in rows] == [f"2 GPUs are needed, {torch.cuda.device_count()} here"] * 2
