"""The benchmark of the losses compares like with like: the same value and gradients from the same operands."""

from __future__ import annotations

import pytest
import torch

from kernels.benchmark_contrastive import job, rows
from tests.kernels.loss_family import relative

CPU = torch.device("cpu")


@pytest.mark.parametrize("loss", ["weighted", "soft", "siglip", "share"])
def test_eager_and_tiled_do_the_same_work(loss: str) -> None:
    results = []
    for implementation in ("eager", "tiled"):
        made = job(implementation, CPU, loss, batch=60, width=16, similarity_width=8, columns=150)
        value = made.run()
        results.append([value.detach(), *torch.autograd.grad(value, list(made.leaves))])
    for naive, tiled in zip(*results, strict=True):
        assert relative(tiled, naive) < 1e-4


def test_a_quick_look_has_a_row_for_each_and_the_reason_of_what_is_missing() -> None:
    found = {(each["size"].split()[0], each["implementation"]): each for each in rows(CPU, quick=True)}
    assert {name for loss, name in found if loss == "weighted"} == {"eager", "clip-loss", "tiled", "triton"}
    assert {name for loss, name in found if loss == "siglip"} == {"eager", "tiled", "triton"}
    for (_, implementation), each in found.items():
        assert (each["both_ms"] is None) == (implementation == "triton")
    eager, tiled = found["weighted", "eager"], found["weighted", "tiled"]
    assert tiled["speedup"] == pytest.approx(eager["both_ms"] / tiled["both_ms"])
    assert tiled["forward_flop_s"] == pytest.approx(2 * 512 * 512 * (256 + 128) / tiled["forward_ms"] * 1e3)
    assert "CUDA device of capability 8.0" in found["weighted", "triton"]["note"]
    with pytest.raises(ValueError, match="unknown implementation 'triton-lang'"):
        job("triton-lang", CPU, "weighted", 8, 4, 4)
