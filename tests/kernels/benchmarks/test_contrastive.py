"""The benchmark of the losses compares like with like.

The same value and gradients from the same operands, for every loss of the family.
"""

from __future__ import annotations

import pytest
import torch

from cardialign.kernels.benchmarks.cases import measure
from cardialign.kernels.benchmarks.contrastive import LOSSES, cases, job
from tests.support.kernels.loss_family import relative

CPU = torch.device("cpu")


@pytest.mark.parametrize("loss", [*LOSSES, "share"])
def test_eager_and_tiled_do_the_same_work(loss: str) -> None:
    results = []
    for implementation in ("eager", "tiled"):
        made = job(implementation, CPU, loss, batch=60, width=16, similarity_width=8, columns=150)
        value = made.run()
        results.append([value.detach(), *torch.autograd.grad(value, list(made.leaves))])
    for naive, tiled in zip(*results, strict=True):
        assert relative(tiled, naive) < 1e-4


def test_a_quick_look_has_a_row_for_each_loss() -> None:
    found = {
        (row["operands"]["loss"], row["implementation"]): row
        for case in cases(CPU, quick=True)
        for row in measure(case, CPU)
    }
    assert {loss for loss, _ in found} == set(LOSSES)
    assert {name for loss, name in found if loss == "weighted"} == {"eager", "clip-loss", "tiled"}
    assert all(row["both_ms"] > 0 and row["auto"] == (name == "tiled") for (_, name), row in found.items())
    eager, tiled = found["weighted", "eager"], found["weighted", "tiled"]
    assert tiled["speedup"] == pytest.approx(eager["both_ms"] / tiled["both_ms"])
    assert tiled["forward_flop_s"] == pytest.approx(2 * 256 * 256 * (256 + 128) / tiled["forward_ms"] * 1e3)
    # Two sides of 256 rows, read in both passes, and the gradients of the embeddings written.
    assert tiled["both_byte_s"] == pytest.approx(4 * 2 * 256 * (2 * (256 + 128) + 256) / tiled["both_ms"] * 1e3)
    # A pointwise loss computes its logits once, a softmax loss again in its backward pass.
    siglip = found["siglip", "eager"]
    assert siglip["both_flop_s"] == pytest.approx(2 * 256 * 256 * (3 * 256 + 128) / siglip["both_ms"] * 1e3)


def test_the_sizes_for_which_memory_and_time_are_promised_are_measured() -> None:
    def sizes(device: str) -> set[tuple[str, int, int]]:
        return {
            (case.size["loss"], case.size["batch"], case.size["width"])
            for case in cases(torch.device(device), quick=False)
        }

    assert {("weighted", 8192, 256), ("weighted", 32768, 256)} <= sizes("cpu")
    assert {("weighted", 8192, 256), ("weighted", 65536, 512), ("share", 4096, 512)} <= sizes("cuda")
    (large,) = [case for case in cases(CPU, quick=False) if case.size["batch"] == 32768]
    assert large.absent == {"eager": "not run: its matrices would take about 26 GB"} and large.scale == 32768**2
    for device in ("cpu", "cuda"):  # every loss with its memory, whatever the device
        listed = cases(torch.device(device), quick=False)
        assert {case.size["loss"] for case in listed if case.memory} >= set(LOSSES)
        assert all(("triton" in case.implementations) == (device == "cuda") for case in listed)


def test_what_cannot_run_here_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="unknown implementation 'triton-lang'"):
        job("triton-lang", CPU, "weighted", 8, 4, 4)
    with pytest.raises(ValueError, match=r"CUDA device of capability 8\.0"):
        job("triton", CPU, "weighted", 8, 4, 4)
