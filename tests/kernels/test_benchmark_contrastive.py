"""The benchmark of the losses compares like with like: the same value and gradients from the same operands."""

from __future__ import annotations

import pytest
import torch

from kernels.benchmark import measure
from kernels.benchmark_contrastive import _work, job
from tests.kernels.loss_family import relative

CPU = torch.device("cpu")


@pytest.mark.parametrize("loss", ["weighted", "soft", "siglip"])
def test_eager_and_tiled_do_the_same_work(loss: str) -> None:
    results = []
    for implementation in ("eager", "tiled"):
        made = job(implementation, CPU, loss, batch=60, width=16, similarity_width=8)
        value = made.run()
        results.append([value.detach(), *torch.autograd.grad(value, list(made.leaves))])
    for naive, tiled in zip(*results, strict=True):
        assert relative(tiled, naive) < 1e-4


def test_rows_carry_times_rates_and_the_reason_of_what_is_missing() -> None:
    size = {"loss": "weighted", "batch": 64, "width": 16, "similarity_width": 8}
    rows = measure(
        "contrastive",
        "kernels.benchmark_contrastive:job",
        ["eager", "clip-loss", "tiled", "unheard-of"],
        size,
        CPU,
        work=_work(64, 16, 8),
        rounds=1,
        memory=False,
    )
    by_name = {each["implementation"]: each for each in rows}
    assert by_name["eager"]["speedup"] == 1 and by_name["tiled"]["both_ms"] > 0
    counted = 2 * 64 * 64 * (16 + 8)
    assert by_name["tiled"]["forward_flop_s"] == pytest.approx(counted / by_name["tiled"]["forward_ms"] * 1e3)
    assert by_name["unheard-of"]["both_ms"] is None and "unknown implementation" in by_name["unheard-of"]["note"]
    with pytest.raises(ValueError, match="unknown implementation 'triton-lang'"):
        job("triton-lang", CPU, "weighted", 8, 4, 4)
