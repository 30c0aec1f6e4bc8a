"""The measuring core measures what it says. No figure is asserted to be fast: machines differ."""

from __future__ import annotations

import pytest
import torch

from kernels import benchmark
from kernels.benchmark import Job, Timing, Work, collect, copy_rate, gemm_rate, interleaved_medians, measure, row
from kernels.benchmark_memory import peak_memory_in_subprocess

CPU = torch.device("cpu")
BUILDER = "tests.kernels.benchmark_jobs:job"


def test_jobs_take_turns_and_only_the_rounds_after_the_warm_up_count() -> None:
    order: list[str] = []

    def make(name: str, side: int) -> Job:
        x = torch.ones(side, side, requires_grad=True)

        def run() -> torch.Tensor:
            order.append(name)
            return x @ x

        return Job(run, [x])

    timings = interleaved_medians({"small": make("small", 8), "large": make("large", 400)}, CPU, rounds=3, warmup=2)
    assert order == ["small", "large"] * 5
    small, large = timings["small"], timings["large"]
    assert small is not None and large is not None
    assert 0 < small.forward_ms < large.forward_ms and large.both_ms > large.backward_ms > 0  # 125,000 times the work
    with pytest.raises(ValueError, match="at least one round"):
        interleaved_medians({}, CPU, rounds=0)


def test_a_job_that_runs_out_of_memory_is_left_out_and_the_others_go_on() -> None:
    def hungry() -> torch.Tensor:
        raise torch.OutOfMemoryError

    timings = interleaved_medians({"hungry": Job(hungry, []), "fine": Job(lambda: torch.ones(3), [])}, CPU, rounds=1)
    assert timings["hungry"] is None
    assert timings["fine"] is not None and timings["fine"].backward_ms == 0


def test_rates_follow_from_counts_and_times() -> None:
    made = row("op", "x", CPU, "n=1", Timing(2.0, 4.0, 6.5), Work(forward_flops=1e9, both_bytes=13e6), None)
    assert made["forward_flop_s"] == pytest.approx(5e11)
    assert made["both_byte_s"] == pytest.approx(2e9)
    assert made["both_flop_s"] is None and made["forward_byte_s"] is None


def test_memory_is_what_the_pass_itself_holds() -> None:
    elements = 8 << 20  # 32 MiB a vector
    peak = peak_memory_in_subprocess(BUILDER, "four", {"elements": elements}, {"elements": 1000})
    # Four saved vectors, and in the backward pass a gradient or two; the operand of 32 MiB and PyTorch's own hundreds are not in it.
    assert 4 * 32 <= peak < 4 * 32 + 3 * 32


def test_a_pass_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="absent needs a machine of tomorrow"):
        peak_memory_in_subprocess(BUILDER, "absent", {"elements": 1})


def test_speed_ups_are_against_the_first_and_the_absent_say_why() -> None:
    rows = measure("op", BUILDER, ["one", "four", "absent"], {"elements": 1 << 16}, CPU, work=Work(), rounds=3, memory=False)
    assert rows[0]["speedup"] == 1 and 0 < rows[1]["speedup"] == rows[0]["both_ms"] / rows[1]["both_ms"]
    assert rows[2]["both_ms"] is None and rows[2]["speedup"] is None
    assert rows[2]["note"] == "absent needs a machine of tomorrow; use copies" and rows[0]["size"] == "elements=65536"


def test_the_device_limits_are_measured() -> None:
    assert copy_rate(CPU, rounds=1, mib=4) > 1e8
    assert gemm_rate(CPU, rounds=1, side=128) > 1e8


def test_operations_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(benchmark.MODULES, "levitation", "kernels.benchmark_levitation")
    rows, skipped = collect(CPU, quick=True, only=["levitation"])
    assert rows == [] and skipped == ["levitation: the module kernels.benchmark_levitation is not part of this installation"]
    with pytest.raises(ValueError, match="unknown operation teleport; known: contrastive"):
        collect(CPU, quick=True, only=["teleport"])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device is usable"):
            collect(torch.device("cuda"), quick=True)
