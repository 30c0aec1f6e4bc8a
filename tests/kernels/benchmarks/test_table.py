"""The measuring core measures what it says. No figure is asserted to be fast: machines differ."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from cardialign.kernels.benchmarks import cases as benchmark
from cardialign.kernels.benchmarks.cases import Case, Work, collect, compared, measure
from cardialign.kernels.benchmarks.memory import peak_mib
from cardialign.kernels.benchmarks.timing import Job, Timing, copy_rate, gemm_rate, interleaved_medians, run_once
from tests.support.kernels.benchmark_jobs import job

CPU = torch.device("cpu")
CASE = Case("op", "elements=65536", ("one", "four", "absent"), {"elements": 1 << 16}, build=job, rounds=3, memory=False)


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
    assert small is not None and large is not None and small.rounds == large.rounds == 3
    assert 0 < small.forward_ms < large.forward_ms and large.both_ms > large.backward_ms > 0  # 125,000 times the work
    with pytest.raises(ValueError, match="at least one round"):
        interleaved_medians({}, CPU, rounds=0)


@pytest.mark.parametrize(("seconds", "at_least", "at_most"), [(0.5, 2, 25), (0.0, 1, 1)])
def test_the_bound_on_seconds_holds_the_repeats_and_one_round_is_always_counted(
    seconds: float, at_least: int, at_most: int
) -> None:
    def nap() -> torch.Tensor:
        time.sleep(0.02)
        return torch.ones(1)

    began = time.monotonic()
    timing = interleaved_medians({"nap": Job(nap, ())}, CPU, rounds=1000, warmup=0, seconds=seconds)["nap"]
    assert timing is not None and at_least <= timing.rounds <= at_most
    assert time.monotonic() - began < 2


def test_a_job_that_runs_out_of_memory_is_left_out_and_the_others_go_on() -> None:
    def hungry() -> torch.Tensor:
        raise torch.OutOfMemoryError

    timings = interleaved_medians({"hungry": Job(hungry, []), "fine": Job(lambda: torch.ones(3), [])}, CPU, rounds=1)
    assert timings["hungry"] is None
    assert timings["fine"] is not None and timings["fine"].backward_ms == 0


def test_rates_follow_from_counts_and_times() -> None:
    case = replace(CASE, work=Work(forward_flops=1e9, both_bytes=13e6), implementations=("x",))
    (made,) = compared(case, CPU, {"x": Timing(2.0, 4.0, 6.5)}, {})
    assert made["forward_flop_s"] == pytest.approx(5e11)
    assert made["both_byte_s"] == pytest.approx(2e9)
    assert made["both_flop_s"] is None and made["forward_byte_s"] is None


@pytest.mark.parametrize("exact", [True, False])
def test_memory_is_what_the_pass_itself_holds(exact: bool) -> None:
    elements = 8 << 20  # 32 MiB a vector
    run_once(job("four", CPU, 1000), {}, "", None)
    four = job("four", CPU, elements)
    peak = peak_mib(CPU, lambda: run_once(four, {}, "", None), exact)
    if peak is None:
        pytest.skip("the system does not tell the memory of a process")
    # Four saved vectors, and in the backward pass a gradient or two; the operand of 32 MiB and PyTorch's own hundreds
    # are not in it. The kernel counts pages in batches, and a block that was free before may be used again: a MiB is
    # within the error.
    assert 4 * 32 - 1 <= peak < 4 * 32 + 3 * 32


def test_memory_of_one_case_does_not_depend_on_what_ran_before() -> None:
    def pass_of(elements: int) -> float | None:
        made = job("four", CPU, elements)
        return peak_mib(CPU, lambda: run_once(made, {}, "", None))

    first = pass_of(1 << 20)
    if first is None:
        pytest.skip("the system does not tell the memory of a process")
    litter = [torch.ones(200_000) for _ in range(40)]  # freed in holes that a pass could fill unseen
    del litter[::2]
    again = pass_of(1 << 20)
    assert again == pytest.approx(first, abs=1.0)


def test_speed_ups_are_against_the_first_and_the_absent_say_why() -> None:
    rows = measure(CASE, CPU)
    assert rows[0]["speedup"] == 1 and 0 < rows[1]["speedup"] == rows[0]["both_ms"] / rows[1]["both_ms"]
    assert rows[2]["both_ms"] is None and rows[2]["speedup"] is None
    assert rows[2]["note"] == "absent needs a machine of tomorrow; use copies" and rows[0]["size"] == "elements=65536"
    # Without its baseline a ratio would be one to something else.
    rows = measure(replace(CASE, absent={"one": "not run: too large"}), CPU)
    assert [row["implementation"] for row in rows] == ["one", "four", "absent"] and rows[0][
        "note"
    ] == "not run: too large"
    assert rows[1]["both_ms"] > 0 and rows[1]["speedup"] is None


def test_the_implementation_that_auto_takes_is_marked() -> None:
    rows = measure(replace(CASE, dispatched=lambda device: "four", kernels=("four",)), CPU)
    assert [row["auto"] for row in rows] == [False, True, False] == [row["kernel"] for row in rows]


def test_the_device_limits_are_measured() -> None:
    assert copy_rate(CPU, rounds=1, mib=4) > 1e8
    assert gemm_rate(CPU, rounds=1, side=128) > 1e8


def test_operations_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(benchmark.MODULES, "levitation", "cardialign.kernels.benchmarks.levitation")
    rows, skipped = collect(CPU, quick=True, only=["levitation"])
    assert rows == [] and skipped == [
        "levitation: the module cardialign.kernels.benchmarks.levitation is not part of this installation"
    ]
    assert collect(CPU, quick=True, only=[]) == ([], [])
    with pytest.raises(ValueError, match="unknown operation teleport; known: contrastive"):
        collect(CPU, quick=True, only=["teleport"])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device is usable"):
            collect(torch.device("cuda"), quick=True)
