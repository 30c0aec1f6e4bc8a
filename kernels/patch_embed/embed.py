"""Multi-scale patch embedding of lead groups: strided convolution, LayerNorm and GELU, token-major.

Shapes: B batch, L leads, T samples, G lead groups, L_g leads of a group, K kernel samples, D width,
N = floor((T - K) / stride) + 1 tokens of a scale.
A missing lead adds nothing; the present leads of its group are rescaled by L_g / present, and the group's tokens get
the learned embedding of every missing lead, so "absent" is never confused with "flat".
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cardialign.kernels.dispatch import Backend, triton_by_default
from cardialign.kernels.patch_embed.geometry import LAYER_NORM_EPS, PatchScaleParams, token_count, token_elements


def multi_scale_patch_embed(
    signal: Tensor,
    lead_mask: Tensor,
    scales: Sequence[PatchScaleParams],
    groups: Sequence[Sequence[int]],
    *,
    gain: Tensor | None = None,
    mean: Tensor | None = None,
    rstd: Tensor | None = None,
    backend: Backend = "auto",
) -> list[Tensor]:
    """Tokens (B, G, N_s, D) of every scale, in the type of the weights.

    signal: (B, L, T), the unit is the caller's (mV, normalised, or int16 counts); whatever a missing lead holds, NaN
    included, is ignored.
    lead_mask: bool (B, L), True = present.
    groups: lead indices of every group.
    gain (unit per count), mean and rstd (in that unit): (B, L) or (L,), constants. The tokens are those of
    (signal * gain - mean) * rstd. rstd 0 makes a lead flat; only lead_mask makes it missing.
    backend: "torch"; "triton", one fused launch (CUDA, or Triton's interpreter); "auto", the fused one where
    `fused_here` says so of the parameters as autocast has them: tokens are then in its type.
    Differentiable with respect to all parameters, and to the signal where it requires a gradient (always by PyTorch).
    Raises ValueError when the signal is shorter than a kernel or parameters do not fit the groups.
    Source: multi-scale strided patch embeddings per lead group (MS-SATE over MVCSE groups). `patch_embed_reference`
    defines the result.
    """
    check_patch_embed(signal, lead_mask, scales, groups)
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"unknown backend {backend!r}; choose auto, torch or triton")
    asks_signal_gradient = signal.requires_grad and torch.is_grad_enabled()
    if backend == "triton" and asks_signal_gradient:
        raise ValueError(
            "the triton backend makes no gradient for the signal; choose backend auto or torch, or detach the signal"
        )
    if backend == "auto" and not asks_signal_gradient:
        cast = _as_autocast(signal.device, scales)
        if fused_here(signal, cast):
            backend, scales = "triton", cast
    if backend == "triton":
        from cardialign.kernels.patch_embed.triton.backend import patch_embed_triton

        return patch_embed_triton(signal, lead_mask, _affine(signal, gain, mean, rstd), scales, groups)
    signal = calibrated(signal, gain, mean, rstd)
    # Every tensor operation has a price of its own on small batches,
    # so leads are gathered once and shared by all scales.
    present = _present_signal(signal, lead_mask).to(scales[0].weights[0].dtype)
    absent = (~lead_mask).to(scales[0].missing.dtype)
    group_signals, factors, absents = [], [], []
    for leads in groups:
        index = torch.tensor(leads, device=signal.device)
        group_signals.append(present.index_select(1, index))
        absents.append(absent.index_select(1, index))
        factors.append(_present_factor(lead_mask.index_select(1, index), present.dtype))
    return [_scale_tokens(scale, groups, group_signals, factors, absents) for scale in scales]


def _as_autocast(device: torch.device, scales: Sequence[PatchScaleParams]) -> Sequence[PatchScaleParams]:
    """The parameters in the type that autocast computes products in on a GPU; as they are elsewhere and without it."""
    if device.type != "cuda" or not torch.is_autocast_enabled("cuda"):
        return scales
    dtype = torch.get_autocast_dtype("cuda")
    return [
        PatchScaleParams(
            scale.kernel,
            scale.stride,
            [weight.to(dtype) for weight in scale.weights],
            *(tensor.to(dtype) for tensor in (scale.bias, scale.ln_weight, scale.ln_bias, scale.missing)),
        )
        for scale in scales
    ]


def fused_here(signal: Tensor, scales: Sequence[PatchScaleParams]) -> bool:
    """True where backend "auto" takes the fused kernels.

    Allowed at this size (`cardialign.kernels.dispatch`), CUDA (compute capability 8.0 or newer), 16-bit weights, width
    128 to 1024 in steps of 16, no tracing. float32 and float64 weights stay with PyTorch: the fused kernels gain by
    writing less, and there the products weigh more than the bytes.
    """
    dtype, width = scales[0].weights[0].dtype, scales[0].weights[0].shape[0]
    if not signal.is_cuda or torch.compiler.is_compiling() or importlib.util.find_spec("triton") is None:
        return False
    if not triton_by_default("patch-embed", token_elements(signal.shape[0], signal.shape[-1], scales), signal.device):
        return False
    from cardialign.kernels.patch_embed.triton.tiling import DISPATCHED_WIDTHS, SIGNAL_TYPES

    return (
        dtype in (torch.float16, torch.bfloat16)
        and signal.dtype in SIGNAL_TYPES
        and width in DISPATCHED_WIDTHS
        and torch.cuda.get_device_capability(signal.device) >= (8, 0)
    )


def calibrated(signal: Tensor, gain: Tensor | None, mean: Tensor | None, rstd: Tensor | None) -> Tensor:
    """(signal * gain - mean) * rstd, in float32 or the signal's own wider type.

    The signal itself where none is given and it is no integer.
    """
    if gain is None and mean is None and rstd is None and signal.is_floating_point():
        return signal
    _check_calibration(signal, gain, mean, rstd)
    x = signal.to(torch.promote_types(signal.dtype, torch.float32))
    if gain is not None:
        x = x * gain[..., None]
    if mean is not None:
        x = x - mean[..., None]
    return x if rstd is None else x * rstd[..., None]


def _check_calibration(signal: Tensor, gain: Tensor | None, mean: Tensor | None, rstd: Tensor | None) -> None:
    for name, values in (("gain", gain), ("mean", mean), ("rstd", rstd)):
        if values is not None and values.shape not in (signal.shape[:2], signal.shape[1:2]):
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}; pass {tuple(signal.shape[:2])} or ({signal.shape[1]},)"
            )


def _affine(signal: Tensor, gain: Tensor | None, mean: Tensor | None, rstd: Tensor | None) -> Tensor | None:
    """(B, L, 2) float32 slope and centre, so that x = signal * slope - centre; None where there is nothing to do."""
    if gain is None and mean is None and rstd is None:
        return None
    _check_calibration(signal, gain, mean, rstd)
    one = torch.ones(signal.shape[:2], dtype=torch.float32, device=signal.device)
    spread = one if rstd is None else one * rstd
    slope = spread if gain is None else spread * gain
    centre = torch.zeros_like(one) if mean is None else spread * mean
    return torch.stack((slope, centre), dim=-1).detach()


def _scale_tokens(
    scale: PatchScaleParams,
    groups: Sequence[Sequence[int]],
    signals: list[Tensor],
    factors: list[Tensor],
    absents: list[Tensor],
) -> Tensor:
    tokens = []
    for group, leads in enumerate(groups):
        weight = scale.weights[group]
        shift = absents[group] @ scale.missing[list(leads)] + scale.bias[group]
        patches = _patches(signals[group], scale.kernel, scale.stride)
        projected = patches @ weight.flatten(1).T
        z = torch.addcmul(shift[:, None, :], projected, factors[group][:, None, None])
        tokens.append(
            F.gelu(F.layer_norm(z, (z.shape[-1],), scale.ln_weight[group], scale.ln_bias[group], LAYER_NORM_EPS))
        )
    return torch.stack(tokens, dim=1)


def _patches(signal: Tensor, kernel: int, stride: int) -> Tensor:
    """(B, L_g, T) -> (B, N, L_g * K)."""
    count = token_count(signal.shape[-1], kernel, stride)
    if stride == kernel:
        cut = signal[..., : count * kernel].unflatten(-1, (count, kernel))
    else:
        cut = signal.unfold(-1, kernel, stride)
    return cut.transpose(1, 2).flatten(2)


def _present_signal(signal: Tensor, lead_mask: Tensor) -> Tensor:
    # where, not a product: NaN times 0 is NaN
    return torch.where(lead_mask[:, :, None], signal, torch.zeros((), dtype=signal.dtype, device=signal.device))


def _present_factor(group_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L_g) -> (B,): L_g / present, finite when none is."""
    return group_mask.shape[1] / group_mask.sum(1).clamp(min=1).to(dtype)


def check_patch_embed(
    signal: Tensor, lead_mask: Tensor, scales: Sequence[PatchScaleParams], groups: Sequence[Sequence[int]]
) -> None:
    """Raise ValueError, naming the numbers, when signal, mask, parameters and groups do not fit together."""
    if signal.ndim != 3:
        raise ValueError(f"signal has shape {tuple(signal.shape)}; pass (batch, leads, samples)")
    if lead_mask.dtype != torch.bool or lead_mask.shape != signal.shape[:2]:
        raise ValueError(
            f"lead_mask is {lead_mask.dtype} {tuple(lead_mask.shape)}; "
            f"pass bool {tuple(signal.shape[:2])}, True = present"
        )
    if not scales or not groups:
        raise ValueError("scales or groups is empty; pass at least one of each")
    leads = signal.shape[1]
    for number, group in enumerate(groups):
        if not group or not all(0 <= lead < leads for lead in group):
            raise ValueError(f"group {number} has leads {list(group)}; name one or more leads from 0 to {leads - 1}")
    for scale in scales:
        token_count(signal.shape[-1], scale.kernel, scale.stride)
        width = scale.bias.shape[-1]
        expected = [(width, len(group), scale.kernel) for group in groups]
        found = [tuple(weight.shape) for weight in scale.weights]
        if found != expected:
            raise ValueError(
                f"weights of the {scale.kernel}-sample scale have shapes {found}; the groups need {expected}"
            )
