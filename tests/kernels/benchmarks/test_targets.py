"""The verdicts follow from the rows.

Which row is compared with which, on which side of the limit, and silence where nothing was measured.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cardialign.kernels.benchmarks import contrastive as benchmark_contrastive
from cardialign.kernels.benchmarks import patch_embed as benchmark_patch_embed
from cardialign.kernels.benchmarks.cases import Case, Rows, compared, listed
from cardialign.kernels.benchmarks.dispatch import contests, dispatch_table
from cardialign.kernels.benchmarks.table import markdown, with_shares
from cardialign.kernels.benchmarks.targets import TARGETS, outcomes
from cardialign.kernels.benchmarks.timing import Timing

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
COPY, GEMM = 4e12, 7e14


def measured(
    case: Case, device: torch.device, peak: float | None = None, auto: str = "", **milliseconds: float
) -> Rows:
    """Rows of a case as if they had been timed: forward a third of these milliseconds."""
    timings = {name.replace("_", " "): Timing(ms / 3, 2 * ms / 3, ms, 5, peak) for name, ms in milliseconds.items()}
    rows = compared(
        replace(case, dispatched=None),
        device,
        timings,
        dict.fromkeys(set(case.implementations) - set(timings), "not here"),
    )
    for row in rows:
        row["auto"] = row["implementation"] == auto
    return [with_shares(row, COPY, GEMM) for row in rows]


def report(rows: Rows, *devices: str, **more: Any) -> dict[str, Any]:
    listed = [{"device": each, "name": "NVIDIA H200", "copy_byte_s": COPY, "gemm_flop_s": GEMM} for each in devices]
    versions = {"torch": "2.11", "triton": "3.6.0"}
    about = {"date": "2026-11-20", "quick": False, "only": [], "threads": 1, "versions": versions}
    return {**about, "devices": listed, "rows": rows, "skipped": [], "unmeasured": [], **more}


def case(device: torch.device, loss: str, batch: int) -> Case:
    return next(
        each
        for each in reversed(benchmark_contrastive.cases(device, False))
        if (each.size["loss"], each.size["batch"]) == (loss, batch)
    )


def patch_case(width: int) -> Case:
    sizes = {"batch": 256, "width": width}
    return next(each for each in benchmark_patch_embed.cases(CUDA, False) if sizes.items() <= each.size.items())


def test_without_a_gpu_its_targets_say_so_and_only_those() -> None:
    rows = measured(case(CPU, "weighted", 8192), CPU, peak=45.0, eager=9.0, tiled=8.0)
    found = outcomes(report(rows, "cpu"))
    assert [each.verdict for each in found] == ["pass", "not measured in this run", *["not measured on a GPU"] * 8]
    assert found[0].measured == "0.047 GB (tiled); naive 0.05 GB"
    assert all(each.measured == "not measured on a GPU" for each in found[2:])


@pytest.mark.parametrize(
    ("batch", "peak", "verdict"), [(8192, 381.0, "pass"), (8192, 382.0, "fail"), (32768, 954.0, "fail")]
)
def test_memory_is_judged_in_gigabytes_of_a_thousand_million_bytes(batch: int, peak: float, verdict: str) -> None:
    rows = measured(case(CPU, "weighted", batch), CPU, peak=peak, tiled=8.0)
    found = outcomes(report(rows, "cpu"))[0 if batch == 8192 else 1]
    assert found.verdict == verdict and "naive not" in found.measured


def test_the_loss_on_a_gpu_is_judged_by_the_fastest_of_ours_against_each_baseline() -> None:
    square = measured(case(CUDA, "weighted", 65536), CUDA, peak=300.0, triton=59.0, tiled=400.0)
    share = measured(case(CUDA, "share", 4096), CUDA, peak=30.0, eager=12.1, compiled=4.4, tiled=20.0, triton=3.0)
    found = outcomes(report(square + share, "cuda"))
    assert [each.verdict for each in found[2:6]] == ["pass", "pass", "pass", "fail"]
    assert found[2].measured == "59 ms (triton)" and found[3].measured.startswith("0.315 GB (triton); naive not here")
    assert (
        found[4].measured == "4.03x (triton 3 ms, eager 12.1 ms)"
        and found[5].measured == "1.47x (triton 3 ms, compiled 4.4 ms)"
    )
    # A baseline that ran out of memory gives no ratio, and a quicker plain path is ours as well.
    share = measured(case(CUDA, "share", 4096), CUDA, compiled=4.4, tiled=2.0, triton=3.0)
    found = outcomes(report(share, "cuda"))
    assert [each.verdict for each in found[2:6]] == ["not measured in this run"] * 3 + ["pass"]
    assert found[5].measured.startswith("2.20x (tiled")


def test_patches_are_judged_by_their_forward_pass_and_the_better_compiler_baseline() -> None:
    wide = patch_case(256)
    assert wide.work.forward_bytes is not None
    fused = 3e3 * wide.work.forward_bytes / (0.61 * COPY)  # milliseconds of both, of which a third is forward
    times = {"conv1d": 5.1 * fused, "compiled conv1d": 1.6 * fused, "compiled unfold": 1.4 * fused, "fused": fused}
    rows = measured(wide, CUDA, **{name.replace(" ", "_"): ms for name, ms in times.items()})
    other = measured(patch_case(512), CUDA, fused=1e-9)
    found = outcomes(report(other + rows, "cuda"))[6:9]
    assert [each.verdict for each in found] == ["pass", "pass", "fail"]
    assert found[0].measured == "61% of the copy (fused)" and "compiled unfold" in found[2].measured


@pytest.mark.parametrize(("step", "verdict"), [
    ({"recipe": "cardialign-base", "mfu": 0.41, "step_ms": 100.0}, "pass"),
    ({"recipe": "cardialign-base", "mfu": 0.39, "step_ms": 100.0}, "fail"),
    ({"recipe": "cardialign-demo", "mfu": 0.9, "step_ms": 1.0}, "not measured in this run"),
    ({"recipe": "cardialign-base", "note": "no text encoder"}, "not measured in this run"),
])  # fmt: skip
def test_the_step_of_the_base_recipe_is_judged_by_its_model_flops(step: dict[str, Any], verdict: str) -> None:
    assert outcomes(report([], "cuda", steps=[step]))[-1].verdict == verdict


def test_a_kernel_that_is_not_faster_is_named_and_not_written_for_dispatch() -> None:
    small, large = case(CUDA, "siglip", 8192), case(CUDA, "weighted", 65536)
    rows = [
        *measured(small, CUDA, auto="triton", eager=4.0, compiled=2.0, tiled=5.0, triton=6.0),
        *measured(large, CUDA, auto="triton", tiled=400.0, triton=50.0),
        *measured(patch_case(128), CUDA, auto="unfold and linear", conv1d=2.0, unfold_and_linear=1.0, fused=0.5),
    ]
    found = contests(rows)
    assert [each.agrees for each in found] == [False, True, False]
    assert (
        found[0]
        .sentence()
        .endswith("triton is 0.83x as fast as PyTorch (tiled); auto takes the kernel: DISAGREES with the measurement")
    )
    assert (
        found[2]
        .sentence()
        .endswith(
            "fused is 2.00x as fast as PyTorch (unfold and linear); auto takes PyTorch: DISAGREES with the measurement"
        )
    )
    table = dispatch_table(report(rows, "cuda"))
    assert table["device"] == "NVIDIA H200" and table["versions"]["triton"] == "3.6.0"
    assert table["kernels_from"] == {"contrastive": 65536**2, "patch-embed": patch_case(128).scale}
    lost = measured(large, CUDA, tiled=40.0, triton=50.0)
    assert dispatch_table(report(rows + lost, "cuda"))["kernels_from"]["contrastive"] is None
    assert "  " + found[0].sentence() in markdown(report(rows, "cuda"))
    with pytest.raises(ValueError, match="no kernel was measured on a GPU"):
        dispatch_table(report([], "cuda"))
    assert any('backend="auto" takes PyTorch everywhere' in line for line in markdown(report([], "cpu")))


def test_every_target_of_a_gpu_belongs_to_a_case_that_a_gpu_is_given() -> None:
    assert sum(target.device == "cuda" for target in TARGETS) == 8
    for each in (case(CUDA, "weighted", 65536), case(CUDA, "share", 4096), patch_case(256)):
        assert each.kernels and each.memory


def test_the_page_of_figures_holds_every_case_that_is_measured_today() -> None:
    page = (Path(__file__).parents[3] / "kernels" / "benchmarks" / "FIGURES.md").read_text()
    assert "`cardialign bench kernels --markdown > kernels/benchmarks/FIGURES.md`" in page
    for device in (CPU, CUDA):
        for each in listed(device, quick=False)[0]:
            assert f"| {each.name} |" in page, (
                f"{each.name} on {device.type} is not in FIGURES.md; run the command at its top again"
            )
    for target in TARGETS:
        assert f"| {target.what} |" in page
