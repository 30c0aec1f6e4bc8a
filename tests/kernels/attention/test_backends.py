"""The choice of a library is a pure function of the operands and of what is installed.

What cannot serve is refused with the remedy.
"""

from __future__ import annotations

import inspect

import pytest
import torch

from cardialign.kernels.attention import attention, pack, packed_attention
from cardialign.kernels.attention.backends import (
    Available,
    FlashAttention,
    Operands,
    choose_backend,
    flash_for,
    probe,
    varlen_fits,
)


def none_called(*_: object, **__: object) -> None:
    raise AssertionError("only the choice is under test")


FA4, FA3, FA2 = (FlashAttention(generation, none_called, none_called) for generation in ("FA4", "FA3", "FA2"))
HOPPER = Available((FA4, FA3, FA2), none_called)
PLAIN_CUDA = Available((), none_called)


def half(head_width: int = 64, device: str = "cuda", **changes: bool) -> Operands:
    return Operands(device, torch.bfloat16, head_width, **changes)


@pytest.mark.parametrize(
    ("about", "available", "chosen"),
    [
        (half(), HOPPER, "flash"),
        (half(packed=True), HOPPER, "flash"),
        (half(masked=True), HOPPER, "sdpa"),  # flash-attn takes no key mask
        (half(), PLAIN_CUDA, "sdpa"),
        (half(packed=True), PLAIN_CUDA, "varlen"),
        (half(head_width=20, packed=True), HOPPER, "sdpa"),
        (half(head_width=320, packed=True), HOPPER, "sdpa"),
        (Operands("cuda", torch.float32, 64, packed=True), HOPPER, "sdpa"),
        (half(packed=True), Available(), "sdpa"),
        (half(device="cpu", packed=True), HOPPER, "sdpa"),
    ],
)
def test_auto_takes_the_best_that_serves(about: Operands, available: Available, chosen: str) -> None:
    assert choose_backend(about, available) == chosen
    assert choose_backend(about, available, "math") == "math"


def test_the_newest_flash_attention_that_takes_the_head_width() -> None:
    assert flash_for(half(128), HOPPER) is FA4
    assert flash_for(half(192), HOPPER) is FA3
    assert flash_for(half(192), Available((FA4,))) is None


def test_a_generation_runs_only_where_it_was_written_for() -> None:
    runs = {
        capability: [f.generation for f in (FA4, FA3, FA2) if f.runs_on(capability)]
        for capability in [(7, 5), (8, 0), (9, 0), (10, 0)]
    }
    assert runs == {(7, 5): [], (8, 0): ["FA2"], (9, 0): ["FA4", "FA3", "FA2"], (10, 0): ["FA4", "FA2"]}


@pytest.mark.parametrize(
    ("asked", "about", "available", "why"),
    [
        (
            "flash",
            half(device="cpu"),
            Available(),
            "bfloat16 heads 64 wide on cpu: it needs CUDA tensors; or use backend='auto'",
        ),
        (
            "flash",
            half(),
            PLAIN_CUDA,
            r"no flash-attn that runs on this device is installed \(pip install 'cardialign\[flash\]'",
        ),
        ("flash", half(masked=True), HOPPER, "takes no key mask; pack the sequences and call packed_attention"),
        ("flash", Operands("cuda", torch.float32, 64), HOPPER, "needs float16 or bfloat16"),
        ("flash", half(320), HOPPER, "multiple of 8 up to 256"),
        (
            "varlen",
            half(),
            HOPPER,
            r"varlen attention cannot serve dense sequences .* needs packed sequences \(packed_attention\)",
        ),
        ("varlen", half(device="cpu", packed=True), HOPPER, "a CUDA device"),
        ("triton", half(), HOPPER, "unknown attention backend 'triton'; use auto, flash, varlen, sdpa or math"),
    ],
)
def test_what_was_asked_for_by_name_is_served_or_refused_with_the_remedy(asked, about, available, why) -> None:
    with pytest.raises(ValueError, match=why):
        choose_backend(about, available, asked)


def test_a_cpu_has_sdpa_and_the_operations_refuse_the_rest() -> None:
    assert probe(torch.device("cpu")) == Available()
    q = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ValueError, match="needs CUDA tensors"):
        attention(q, q, q, backend="flash")
    with pytest.raises(ValueError, match="needs packed sequences"):
        packed_attention(q[0], q[0], q[0], torch.tensor([0, 1], dtype=torch.int32), 1, backend="varlen")


def test_pytorchs_varlen_attention_takes_our_arguments() -> None:
    varlen_attn = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    bound = inspect.signature(varlen_attn).bind("q", "k", "v", "cu", "cu", 3, 3)
    names = list(bound.arguments)
    assert names[:3] == ["query", "key", "value"]
    assert names[3:5] == ["cu_seq_q", "cu_seq_k"] and names[5:] == ["max_q", "max_k"]
    assert inspect.signature(varlen_attn).parameters["scale"].default is None  # 1 / sqrt(Dh), as ours


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["flash", "varlen", "sdpa"])
def test_cuda_libraries_equal_the_formula_within_twice_sdpas_own_error(backend) -> None:
    device = torch.device("cuda")
    about, available = half(packed=True), probe(device)
    if (backend == "flash" and flash_for(about, available) is None) or (
        backend == "varlen" and not varlen_fits(about, available)
    ):
        pytest.skip(f"{backend} is not available here")
    torch.manual_seed(0)
    mask = torch.rand(5, 70, device=device) < torch.tensor([1.0, 0.7, 0.0, 0.4, 0.02], device=device)[:, None]
    exact = [pack(torch.randn(5, 70, 4, 64, device=device, dtype=torch.float64), mask) for _ in range(4)]
    cu, longest = exact[0].cu_seqlens, exact[0].max_seqlen

    def run(dtype: torch.dtype, name) -> list[torch.Tensor]:
        leaves = [each.tokens.to(dtype).requires_grad_() for each in exact[:3]]
        output = packed_attention(*leaves, cu, longest, backend=name)
        return [output.detach(), *torch.autograd.grad(output, leaves, exact[3].tokens.to(dtype))]

    truth, plain, fast = run(torch.float64, "math"), run(torch.bfloat16, "math"), run(torch.bfloat16, backend)
    for true, reference, got in zip(truth, plain, fast, strict=True):
        assert (got - true).abs().max() <= 2 * (reference - true).abs().max() + 1e-3
