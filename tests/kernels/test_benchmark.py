"""The measuring core measures what it says. No figure is asserted to be fast: machines differ."""

from __future__ import annotations

import pytest
import torch

from kernels import benchmark
from kernels.benchmark import Job, Timing, Work, collect, copy_rate, gemm_rate, interleaved_medians, measure, row

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


def test_memory_is_what_the_pass_itself_holds_and_the_absent_say_why() -> None:
    elements = 8 << 20  # 32 MiB a vector
    rows = measure(
        "op", BUILDER, ["one", "four", "absent"], {"elements": elements}, CPU, work=Work(), rounds=1, warm_size={"elements": 1000}
    )
    peaks = {each["implementation"]: each["peak_mib"] for each in rows}
    # Beside `copies` saved vectors the backward pass holds a gradient or two of the same size.
    assert 32 <= peaks["one"] < 32 * 4.5
    assert peaks["four"] - peaks["one"] == pytest.approx(3 * 32, abs=40)
    assert rows[0]["speedup"] == 1 and rows[1]["speedup"] > 0
    assert peaks["absent"] is None and rows[2]["note"] == "absent needs a machine of tomorrow; use copies"
    assert rows[2]["speedup"] is None


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
