"""The fused patch embedding gives the tokens and gradients of conv1d + LayerNorm + GELU in float64.

Through Triton's interpreter: no GPU is needed. An error may be twice that of PyTorch in the same type plus a floor. All
buffers are NaN before a kernel writes them.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from cardialign.kernels.patch_embed import PatchScaleParams, multi_scale_patch_embed, patch_embed_reference
from cardialign.kernels.patch_embed.embed import fused_here
from tests.support.kernels.interpreter import interpreted
from tests.support.soak import long_form

CUDA_FLOOR = 2e-6
"""float32 on the GPU: three tf32 products instead of one of float32."""
FLOOR = {torch.float32: 4e-7, torch.float16: 2e-4, torch.bfloat16: 1e-3}
"""Relative to the norm: about three roundings of the type, where PyTorch happens to be exact."""
REGIONS = ((0, 4, 10, 11, 3), (1, 2, 5), (6, 7), (8, 9))


class Setting(NamedTuple):
    """A batch, its patches, and how the work is cut.

    programs: of the backward (1: every loop runs long; 1024, as shipped: every one is short).
    """

    dtype: torch.dtype
    width: int
    sizes: tuple[tuple[int, int], ...]
    samples: int
    batch: int = 3
    groups: tuple[tuple[int, ...], ...] = ((0, 4, 3), (1,))
    counts: bool = False
    programs: int = 1024


Gradients = dict[str, torch.Tensor]


def _parameters(setting: Setting, dtype: torch.dtype, device: str = "cpu") -> list[PatchScaleParams]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        rounded = (0.3 * torch.randn(*shape, generator=generator)).to(setting.dtype)
        return rounded.to(device, dtype).requires_grad_()

    width, groups = setting.width, len(setting.groups)
    return [
        PatchScaleParams(
            kernel,
            stride,
            [normal(width, len(leads), kernel) for leads in setting.groups],
            normal(groups, width),
            normal(groups, width),
            normal(groups, width),
            normal(12, width),
        )
        for kernel, stride in setting.sizes
    ]


def _batch(setting: Setting) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    signal = torch.randn(setting.batch, 12, setting.samples, generator=generator)
    mask = torch.rand(setting.batch, 12, generator=generator) < 0.6
    mask[0] = True
    if setting.batch > 1:
        mask[1, list(setting.groups[-1])] = False
        mask[-1] = mask[-1] & (setting.batch == 2)  # of three records, the last has no lead at all
    if not setting.counts:
        return signal.masked_fill(~mask[:, :, None], float("nan")), mask, {}
    calibration = {
        "gain": 0.001 + 0.001 * torch.rand(12, generator=generator),
        "mean": 0.2 * torch.randn(setting.batch, 12, generator=generator),
        "rstd": 0.5 + torch.rand(setting.batch, 12, generator=generator),
    }
    calibration["rstd"][0, 4] = 0.0  # flat, not missing
    return (700 * signal).to(torch.int16).masked_fill(~mask[:, :, None], -32768), mask, calibration


def _run(setting: Setting, backend: str, device: str) -> Gradients:
    """Tokens and the gradient of every parameter on the CPU, in float64 where the backend is "reference"."""
    signal, mask, calibration = _batch(setting)
    exact = backend == "reference"
    scales = _parameters(setting, torch.float64 if exact else setting.dtype, device)
    signal, mask, calibration = (
        signal.to(device),
        mask.to(device),
        {name: values.to(device) for name, values in calibration.items()},
    )
    if exact:
        signal = signal if setting.counts else signal.double()
        calibration = {name: values.double() for name, values in calibration.items()}
        tokens = patch_embed_reference(signal, mask, scales, setting.groups, **calibration)
    else:
        tokens = multi_scale_patch_embed(signal, mask, scales, setting.groups, **calibration, backend=backend)  # type: ignore[arg-type]
    torch.stack(
        [(t.double() * torch.arange(t.numel(), device=device).cos().view_as(t)).sum() for t in tokens]
    ).sum().backward()
    found: Gradients = {}
    for s, (scale, made) in enumerate(zip(scales, tokens, strict=True)):
        assert made.is_contiguous()
        found[f"tokens of scale {s}"] = made.detach().cpu()
        named = {"bias": scale.bias, "ln_weight": scale.ln_weight, "ln_bias": scale.ln_bias, "missing": scale.missing}
        named |= {f"weights of group {g}": weight for g, weight in enumerate(scale.weights)}
        for name, tensor in named.items():
            assert tensor.grad is not None
            found[f"{name} of scale {s}"] = tensor.grad.cpu()
    return found


def _all_backends(setting: Setting, device: str = "cpu") -> tuple[Gradients, Gradients, Gradients, bool]:
    from cardialign.kernels.patch_embed.triton import backend as patch_embed_triton

    shipped = patch_embed_triton.PROGRAMS, patch_embed_triton.WEIGHT_PROGRAMS
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3, device=device).isnan().all()
        patch_embed_triton.PROGRAMS = patch_embed_triton.WEIGHT_PROGRAMS = setting.programs
        fused, again = _run(setting, "triton", device), _run(setting, "triton", device)
    finally:
        torch.use_deterministic_algorithms(False)
        patch_embed_triton.PROGRAMS, patch_embed_triton.WEIGHT_PROGRAMS = shipped
    same_bits = all(torch.equal(fused[name], again[name]) for name in fused)
    return fused, _run(setting, "torch", device), _run(setting, "reference", device), same_bits


SETTINGS = {
    "lead groups of the main recipe, overlapping patches": Setting(
        torch.float32, 32, ((9, 4), (16, 8)), 75, groups=REGIONS
    ),
    "long loops over tiles and records": Setting(torch.float32, 16, ((5, 2),), 203, programs=1),
    "width above one chunk": Setting(torch.float32, 320, ((20, 20),), 55, batch=2),
    "width above one chunk in bfloat16": Setting(torch.bfloat16, 384, ((16, 8),), 70, batch=1, groups=((2, 7),)),
    "twelve leads and one, bfloat16": Setting(torch.bfloat16, 128, ((10, 5),), 102, groups=(tuple(range(12)), (4,))),
    "raw counts, patches with gaps, float16": Setting(torch.float16, 192, ((7, 10),), 120, counts=True),
    "raw counts, bfloat16, one token": Setting(torch.bfloat16, 256, ((40, 1), (9, 40)), 40, counts=True),
}
QUICK = ("width above one chunk", "twelve leads and one, bfloat16", "raw counts, patches with gaps, float16")
"""Interpreted in `make test`; all of them on a GPU and in `make test-slow`."""


@pytest.mark.parametrize(
    "setting", [one if name in QUICK else long_form(one) for name, one in SETTINGS.items()], ids=SETTINGS.keys()
)
def test_fused_tokens_and_gradients_are_those_of_the_convolution(setting: Setting) -> None:
    _compare(setting, FLOOR[setting.dtype], *interpreted(_all_backends, setting))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_same_compiled_on_a_gpu(setting: Setting) -> None:
    _compare(setting, max(FLOOR[setting.dtype], CUDA_FLOOR), *_all_backends(setting, "cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_host_does_not_wait_for_patches() -> None:
    setting = Setting(torch.bfloat16, 128, ((10, 5),), 102)
    signal, mask, _ = _batch(setting)
    signal, mask, scales = signal.cuda(), mask.cuda(), _parameters(setting, torch.bfloat16, "cuda")
    for mode in ("default", "error"):  # the first compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            (tokens,) = multi_scale_patch_embed(signal, mask, scales, setting.groups, backend="triton")
            tokens.backward(torch.ones_like(tokens))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="not measured")
def test_autocast_takes_the_fused_kernels_and_float32_parameters_get_their_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CARDIALIGN_TRITON", raising=False)
    setting = Setting(torch.float32, 128, ((25, 12), (50, 25)), 2500, batch=8, groups=REGIONS)
    signal, mask, _ = _batch(setting)
    signal, mask = signal.cuda(), mask.cuda()
    found = {}
    for backend in ("auto", "torch"):
        scales = _parameters(setting, torch.float32, "cuda")
        with torch.autocast("cuda", torch.bfloat16):
            tokens = multi_scale_patch_embed(signal, mask, scales, setting.groups, backend=backend)  # type: ignore[arg-type]
        sum(t.float().square().sum() for t in tokens).backward()  # type: ignore[union-attr]
        gradients = [scale.weights[1].grad for scale in scales]
        assert all(grad is not None and grad.dtype == torch.float32 for grad in gradients)
        found[backend] = [*(t.float() for t in tokens), *gradients]
        assert (tokens[0].dtype == torch.bfloat16) is (backend == "auto")
    for fused, plain in zip(found["auto"], found["torch"], strict=True):
        assert fused is not None and plain is not None
        assert float((fused - plain).norm() / plain.norm()) < 2e-2  # two roundings of bfloat16, 8 bits


def _compare(
    setting: Setting, floor: float, fused: Gradients, plain: Gradients, exact: Gradients, same_bits: bool
) -> None:
    assert fused.keys() == exact.keys()
    for name, truth in exact.items():
        assert fused[name].dtype == setting.dtype
        error, allowed = ((found[name].double() - truth).norm() for found in (fused, plain))
        assert error <= 2 * allowed + floor * truth.norm(), f"{name}: {error:.2e}, PyTorch {allowed:.2e}"
    assert same_bits


def _unused_scale() -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    setting = Setting(torch.float32, 16, ((5, 5), (10, 10)), 30)
    gradients = []
    for backend in ("triton", "torch"):
        scales = _parameters(setting, torch.float32)
        signal, mask, _ = _batch(setting)
        tokens = multi_scale_patch_embed(signal, mask, scales, setting.groups, backend=backend)  # type: ignore[arg-type]
        tokens[1].transpose(1, 2).square().sum().backward()  # a gradient that is not contiguous
        gradients.append([scale.weights[0].grad for scale in scales])
    return gradients[0], gradients[1]


def test_a_scale_that_no_loss_reads_gets_zero_gradients() -> None:
    fused, plain = interpreted(_unused_scale)
    assert fused[0] is not None and float(fused[0].abs().max()) == 0
    assert torch.allclose(fused[1], plain[1], rtol=1e-4, atol=1e-5)


def _refusals() -> list[str]:
    small = Setting(torch.float32, 16, ((5, 5),), 30)
    signal, mask, _ = _batch(small)
    messages = []

    def refused(signal: torch.Tensor, scales: list[PatchScaleParams]) -> None:
        with pytest.raises(ValueError) as caught:
            multi_scale_patch_embed(signal, mask, scales, small.groups, backend="triton")
        messages.append(str(caught.value))

    refused(signal.clone().requires_grad_(), _parameters(small, torch.float32))
    refused(signal, _parameters(small, torch.float64))
    refused(signal.double(), _parameters(small, torch.float32))
    refused(signal, _parameters(small._replace(width=1025), torch.float32))
    mixed = _parameters(small, torch.float32)
    mixed[0].bias = mixed[0].bias.detach().half()
    refused(signal, mixed)
    return messages


def test_what_the_fused_kernels_do_not_take_is_refused_with_the_reason() -> None:
    gradient, weights, signals, width, mixed = interpreted(_refusals)
    assert "makes no gradient for the signal" in gradient
    assert "not torch.float64 at width 16" in weights
    assert "not torch.float64" in signals
    assert "not torch.float32 at width 1025" in width
    assert "differ in type" in mixed


def test_cpu_tensors_take_pytorch_and_the_fused_backend_says_what_it_needs() -> None:
    setting = Setting(torch.bfloat16, 128, ((5, 5),), 30)
    signal, mask, _ = _batch(setting)
    scales = _parameters(setting, torch.bfloat16)
    assert not fused_here(signal, scales)
    with pytest.raises(ValueError, match="needs CUDA tensors, the signal is on cpu"):
        multi_scale_patch_embed(signal, mask, scales, setting.groups, backend="triton")
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        multi_scale_patch_embed(signal, mask, scales, setting.groups, backend="cuda")  # type: ignore[arg-type]
