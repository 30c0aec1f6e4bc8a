"""The fast patch embedding equals conv1d + LayerNorm + GELU in value and gradient.

And a missing lead is missing, not flat.
"""

from __future__ import annotations

import pytest
import torch

from cardialign.kernels.patch_embed import (
    PatchScaleParams,
    multi_scale_patch_embed,
    patch_embed_reference,
    token_count,
    token_seconds,
    token_valid,
)

GROUPS = [[0, 4, 10, 11, 3], [1, 2, 5], [6, 7], [8, 9]]
WIDTH = 16


def parameters(
    sizes: list[tuple[int, int]], dtype: torch.dtype = torch.float64, groups: list[list[int]] = GROUPS
) -> list[PatchScaleParams]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return (0.3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    return [
        PatchScaleParams(
            kernel,
            stride,
            [normal(WIDTH, len(group), kernel) for group in groups],
            normal(len(groups), WIDTH),
            normal(len(groups), WIDTH),
            normal(len(groups), WIDTH),
            normal(12, WIDTH),
        )
        for kernel, stride in sizes
    ]


def tensors(scales: list[PatchScaleParams]) -> list[torch.Tensor]:
    return [
        tensor
        for scale in scales
        for tensor in (*scale.weights, scale.bias, scale.ln_weight, scale.ln_bias, scale.missing)
    ]


def signal_and_mask(samples: int = 203, batch: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    signal = torch.randn(batch, 12, samples, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, 12, generator=generator) < 0.6
    mask[0] = True
    mask[1, GROUPS[2]] = False  # a whole group
    mask[2] = False
    return signal, mask


@pytest.mark.parametrize(
    "sizes",
    [[(25, 25), (50, 50), (100, 100)], [(13, 6), (25, 12), (125, 62)], [(7, 10)], [(203, 203), (1, 1)]],
    ids=["abutting", "overlapping", "gaps", "extremes"],
)
def test_tokens_and_gradients_equal_the_convolution(sizes: list[tuple[int, int]]) -> None:
    signal, mask = signal_and_mask()
    fast_scales, plain_scales = parameters(sizes), parameters(sizes)
    fast = multi_scale_patch_embed(signal, mask, fast_scales, GROUPS)
    plain = patch_embed_reference(signal, mask, plain_scales, GROUPS)
    for tokens, expected, (kernel, stride) in zip(fast, plain, sizes, strict=True):
        assert tokens.shape == (5, 4, token_count(203, kernel, stride), WIDTH)
        assert torch.allclose(tokens, expected, rtol=1e-11, atol=1e-11)
    for output in (fast, plain):
        sum(
            (tokens * torch.cos(torch.arange(tokens.numel(), dtype=tokens.dtype)).view_as(tokens)).sum()
            for tokens in output
        ).backward()  # type: ignore[union-attr]
    for fast_tensor, plain_tensor in zip(tensors(fast_scales), tensors(plain_scales), strict=True):
        assert fast_tensor.grad is not None and plain_tensor.grad is not None
        assert torch.allclose(fast_tensor.grad, plain_tensor.grad, rtol=1e-9, atol=1e-9)


def test_signal_gradient_is_made_only_when_asked_and_is_exact() -> None:
    signal, mask = signal_and_mask(samples=60)
    scales = parameters([(10, 5)])
    gradients = []
    for function in (multi_scale_patch_embed, patch_embed_reference):
        asked = signal.clone().requires_grad_()
        function(asked, mask, scales, GROUPS)[0].square().sum().backward()
        assert asked.grad is not None
        gradients.append(asked.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-10)
    assert float(gradients[0].masked_fill(mask[:, :, None], 0).abs().max()) == 0


def test_what_a_missing_lead_holds_is_ignored() -> None:
    signal, mask = signal_and_mask()
    poisoned = signal.masked_fill(~mask[:, :, None], float("nan"))
    scales = parameters([(25, 12)])
    clean, same = (multi_scale_patch_embed(x, mask, scales, GROUPS)[0] for x in (signal, poisoned))
    assert torch.equal(clean, same)
    same.sum().backward()
    assert all(bool(tensor.grad.isfinite().all()) for tensor in tensors(scales) if tensor.grad is not None)


def test_a_missing_lead_differs_from_a_flat_one_and_is_rescaled() -> None:
    scales = parameters([(10, 10)])
    signal = torch.randn(1, 12, 50, dtype=torch.float64)
    signal[0, 6] = signal[0, 7]
    with torch.no_grad():
        scales[0].weights[2][:, 0] = scales[0].weights[2][
            :, 1
        ]  # both septal leads alike: losing one must change nothing but its embedding
        whole = torch.ones(1, 12, dtype=torch.bool)
        without = whole.clone()
        without[0, 6] = False
        flat = signal.clone()
        flat[0, 6] = 0
        both, one, zeroed = (
            multi_scale_patch_embed(x, mask, scales, GROUPS)[0][:, 2]
            for x, mask in ((signal, whole), (signal, without), (flat, whole))
        )
        assert not torch.allclose(one, zeroed, atol=1e-3)
        assert not torch.allclose(one, both, atol=1e-3)
        scales[0].missing.zero_()
        silent = multi_scale_patch_embed(signal, without, scales, GROUPS)[0][:, 2]
        assert torch.allclose(silent, both, atol=1e-12)


def test_a_missing_lead_touches_its_own_group_only() -> None:
    signal, _ = signal_and_mask()
    whole = torch.ones(5, 12, dtype=torch.bool)
    without = whole.clone()
    without[:, 8] = False
    scales = parameters([(25, 25)])
    before, after = (multi_scale_patch_embed(signal, mask, scales, GROUPS)[0] for mask in (whole, without))
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3], atol=1e-3)


def test_bf16_parameters_give_bf16_tokens_near_the_exact_ones() -> None:
    signal, mask = signal_and_mask()
    rounded, exact = parameters([(50, 25)], torch.bfloat16), parameters([(50, 25)])
    tokens = multi_scale_patch_embed(signal.float(), mask, rounded, GROUPS)[0]
    plain = patch_embed_reference(signal.float(), mask, rounded, GROUPS)[0]
    truth = multi_scale_patch_embed(signal, mask, exact, GROUPS)[0]
    assert tokens.dtype == torch.bfloat16
    assert bool((tokens - truth).norm() <= 2 * (plain - truth).norm() + 1e-3 * truth.norm())


def test_a_signal_shorter_than_the_kernel_is_refused_with_both_numbers() -> None:
    signal, mask = signal_and_mask(samples=80)
    for function in (multi_scale_patch_embed, patch_embed_reference):
        with pytest.raises(ValueError, match=r"signal has 80 samples, the patch kernel 100"):
            function(signal, mask, parameters([(25, 25), (100, 100)]), GROUPS)


def test_operands_that_do_not_fit_are_refused() -> None:
    signal, mask = signal_and_mask()
    scales = parameters([(25, 25)])
    with pytest.raises(ValueError, match="group 1 has leads"):
        multi_scale_patch_embed(signal, mask, scales, [[0], [12]])
    with pytest.raises(ValueError, match="weights of the 25-sample scale"):
        multi_scale_patch_embed(signal, mask, scales, GROUPS[:3])
    with pytest.raises(ValueError, match=r"lead_mask is torch\.float64"):
        multi_scale_patch_embed(signal, mask.double(), scales, GROUPS)
    with pytest.raises(ValueError, match="scales or groups is empty"):
        multi_scale_patch_embed(signal, mask, [], GROUPS)


def test_equal_patches_at_two_sampling_rates_share_their_centres() -> None:
    fast = token_seconds(token_count(5000, 50, 25), 50, 25, 500.0)
    slow = token_seconds(token_count(2500, 25, 12), 25, 12, 250.0)
    assert float(fast[0]) == pytest.approx(0.05)
    assert float(fast[-1]) == pytest.approx(9.95)
    assert float(slow[0]) == pytest.approx(float(fast[0]))
    assert torch.allclose(fast.diff(), torch.tensor(0.05), atol=1e-5)


def test_only_patches_inside_the_recording_are_valid() -> None:
    valid = token_valid(torch.tensor([0, 9, 10, 14, 15, 100]), 4, kernel=10, stride=5)
    assert valid.int().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_raw_counts_with_gain_mean_and_rstd_equal_the_signal_normalised_beforehand() -> None:
    signal, mask = signal_and_mask()
    counts = (900 * signal).to(torch.int16)
    gain = torch.linspace(0.5, 2, 12, dtype=torch.float64) / 1000
    mean, rstd = 0.1 * torch.randn(5, 12, dtype=torch.float64), 0.5 + torch.rand(5, 12, dtype=torch.float64)
    rstd[0, 6] = 0  # flat, which is not missing
    before = (counts.double() * gain[:, None] - mean[..., None]) * rstd[..., None]
    scales = parameters([(25, 12), (50, 25)])
    expected = multi_scale_patch_embed(before, mask, scales, GROUPS)
    for function in (multi_scale_patch_embed, patch_embed_reference):
        for tokens, wanted in zip(
            function(counts, mask, scales, GROUPS, gain=gain, mean=mean, rstd=rstd), expected, strict=True
        ):
            assert torch.allclose(tokens, wanted, atol=1e-5)
    unscaled = multi_scale_patch_embed(counts, mask, scales, GROUPS)[0]
    assert torch.allclose(unscaled, multi_scale_patch_embed(counts.double(), mask, scales, GROUPS)[0])
    with pytest.raises(ValueError, match=r"gain has shape \(5,\); pass \(5, 12\) or \(12,\)"):
        multi_scale_patch_embed(counts, mask, scales, GROUPS, gain=mean[:, 0])
