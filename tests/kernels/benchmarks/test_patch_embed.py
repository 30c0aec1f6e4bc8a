"""The benchmark of the patch embedding compares the same operation on the same operands.

And what it counts is what is done.
"""

from __future__ import annotations

import pytest
import torch

from cardialign.kernels.benchmarks.cases import measure
from cardialign.kernels.benchmarks.patch_embed import cases, parameters, patch_job, token_elements, work
from cardialign.kernels.patch_embed import geometry

CPU = torch.device("cpu")
SIZE = {"batch": 2, "samples": 300, "width": 16}


def test_the_implementations_make_the_same_tokens_and_the_fused_one_says_what_it_needs() -> None:
    first, second = (list(patch_job(name, CPU, **SIZE).run()) for name in ("conv1d", "unfold and linear"))
    for a, b in zip(first, second, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    with pytest.raises(ValueError, match="need CUDA"):
        patch_job("fused", CPU, **SIZE)


def test_counted_work_is_that_of_the_patches() -> None:
    counted = work(CPU, **SIZE)
    # tokens: (300 - 25) // 12 + 1 = 23, 11 and 1; twelve leads; two operations per multiply-add
    assert counted.forward_flops == 2 * 2 * 16 * 12 * (23 * 25 + 11 * 50 + 1 * 250)
    made = sum(tokens.numel() for tokens in patch_job("conv1d", CPU, **SIZE).run())
    assert token_elements(**SIZE) == geometry.token_elements(2, 300, parameters(CPU, torch.float32, 16)) == made
    assert counted.forward_bytes == 4 * 2 * (12 * 300 + 4 * 35 * 16)


def test_a_quick_run_on_the_cpu_has_a_row_for_each() -> None:
    (case,) = cases(CPU, quick=True)
    found = {row["implementation"]: row for row in measure(case, CPU)}
    assert found["conv1d"]["both_ms"] > 0 and found["unfold and linear"]["backward_ms"] > 0
    assert found["conv1d"]["speedup"] == 1.0 and found["unfold and linear"]["auto"]


def test_a_gpu_measures_every_width_against_both_forms_eager_and_compiled() -> None:
    listed = cases(torch.device("cuda"), quick=False)
    small, large = [case.size for case in listed[:2]], [case.size for case in listed[2:]]
    assert [size["batch"] for size in small] == [1, 16]
    assert [(size["batch"], size["width"]) for size in large] == [(256, w) for w in (128, 256, 512, 768, 1024)]
    assert all(
        {"conv1d", "compiled conv1d", "unfold and linear", "compiled unfold", *case.kernels}
        == set(case.implementations)
        for case in listed
    )
    assert not any(case.absent for case in listed)
