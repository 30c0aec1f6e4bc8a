"""The fused patch embedding on CUDA: packs parameters, launches the Triton kernels, and is one autograd function.

Called through `multi_scale_patch_embed`. Saved for the backward: the signal, packed parameters, and two floats per
token.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from cardialign.kernels.patch_embed.geometry import LAYER_NORM_EPS, PatchScaleParams
from cardialign.kernels.patch_embed.triton.backward import (
    patch_embed_backward_rows,
    patch_embed_backward_tokens,
    patch_embed_backward_weight,
    patch_embed_sum_partials,
)
from cardialign.kernels.patch_embed.triton.forward import patch_embed_forward
from cardialign.kernels.patch_embed.triton.tables import Groups, PatchTables, Sizes, patch_tables
from cardialign.kernels.patch_embed.triton.tiling import SIGNAL_TYPES, STEP, WIDEST, Tiling, precision, tilings
from cardialign.kernels.triton_support.launch import architecture_of

# Fixed numbers of programs, not those of the card at hand:
# the order of every sum, and so every bit, is the same on any device.
PROGRAMS = 1024
WEIGHT_PROGRAMS = 512
MOST_SPLITS = 32


def interpreted() -> bool:
    """True in a process where Triton runs kernels on the CPU (TRITON_INTERPRET=1 before the import)."""
    return bool(triton.knobs.runtime.interpret)


def patch_embed_triton(
    signal: Tensor,
    lead_mask: Tensor,
    affine: Tensor | None,
    scales: Sequence[PatchScaleParams],
    groups: Sequence[Sequence[int]],
) -> list[Tensor]:
    """Tokens (B, G, N_s, D) of every scale, contiguous views of one buffer, in the type of the weights.

    signal: (B, L, T) int16, float16, bfloat16 or float32.
    affine: (B, L, 2) float32 where it is given; x = signal * affine[..., 0] - affine[..., 1].
    Raises ValueError for tensors off the GPU, a width or type the kernels do not take, and parameters of mixed types.
    """
    weights = [weight for scale in scales for weight in scale.weights]
    vectors = [getattr(scale, name) for name in ("bias", "ln_weight", "ln_bias", "missing") for scale in scales]
    width, dtype = weights[0].shape[0], weights[0].dtype
    if not signal.is_cuda and not interpreted():
        raise ValueError(
            f"the triton backend needs CUDA tensors, the signal is on {signal.device}; choose backend auto or torch"
        )
    if dtype not in (torch.float32, torch.float16, torch.bfloat16) or width > WIDEST:
        raise ValueError(
            f"the triton backend takes float32, float16 or bfloat16 up to width {WIDEST}, not {dtype} at width {width}"
        )
    if any(tensor.dtype != dtype or tensor.shape[-1] != width for tensor in vectors) or any(
        w.dtype != dtype for w in weights
    ):
        raise ValueError("parameters of the patch embedding differ in type or width; cast them to one type")
    if signal.dtype not in SIGNAL_TYPES:
        raise ValueError(f"the triton backend takes int16, float16, bfloat16 or float32 signals, not {signal.dtype}")
    if signal.shape[1] * signal.shape[2] >= 2**31:
        raise ValueError(
            f"a record of {signal.shape[1]} x {signal.shape[2]} samples is too long for 32-bit offsets; cut it"
        )
    sizes: Sizes = tuple((scale.kernel, scale.stride) for scale in scales)
    outputs = _PatchEmbed.apply(
        signal, lead_mask, affine, sizes, tuple(tuple(leads) for leads in groups), *weights, *vectors
    )
    return list(outputs)


def _device(tensor: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _constants(tiling: Tiling, width: int, leads: int, affine: Tensor) -> dict[str, Any]:
    return {
        "LEADS": leads,
        "D": width,
        "DC": tiling.width,
        "BT": tiling.tokens,
        "BF": STEP,
        "AFFINE": affine.numel() > 0,
        "PRECISION": precision(),
        "num_warps": tiling.warps,
        "num_stages": tiling.stages,
    }


class _PatchEmbed(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        signal: Tensor,
        lead_mask: Tensor,
        affine: Tensor | None,
        sizes: Sizes,
        groups: Groups,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        blocks = len(sizes) * len(groups)
        weights, vectors = parameters[:blocks], parameters[blocks:]
        width, dtype = weights[0].shape[0], weights[0].dtype
        batch, leads, samples = signal.shape
        signal = signal.contiguous()
        present = lead_mask.contiguous().view(torch.uint8)
        affine = signal.new_empty(0, dtype=torch.float32) if affine is None else affine.contiguous()
        tiling = tilings(width, dtype, architecture_of(signal.device)).forward
        tables = patch_tables(samples, sizes, groups, tiling.tokens, STEP, signal.device)
        # Two small copies per step: weights side by side, every block padded with zeros to whole chunks;
        # all vectors below each other.
        zeros = weights[0].new_zeros(width, STEP)
        pieces = [
            p for weight, pad in zip(weights, tables.padding, strict=True) for p in (weight.flatten(1), zeros[:, :pad])
        ]
        packed_weights, packed_vectors = torch.cat(pieces, dim=1), torch.cat(vectors)
        rows = batch * len(groups) * sum(tables.tokens)
        tokens = weights[0].new_empty(rows, width)
        moments = torch.empty(rows, 2, dtype=torch.float32, device=signal.device)
        if rows:
            with _device(signal):
                patch_embed_forward[(batch * len(tables.tile),)](
                    signal, affine, present, tables.offset, tables.lead, tables.tile, tables.group,
                    packed_weights, packed_vectors, tokens, moments,
                    batch, samples, tables.columns, len(tables.tile), blocks, len(groups), tables.group.shape[1],
                    LAYER_NORM_EPS, **_constants(tiling, width, leads, affine),
                )  # fmt: skip
        ctx.save_for_backward(signal, present, affine, packed_weights, packed_vectors, moments)
        ctx.sizes, ctx.groups = sizes, groups
        ctx.set_materialize_grads(False)
        starts = [batch * len(groups) * before for before in tables.tokens_before]
        return tuple(
            tokens[starts[s] : starts[s + 1]].view(batch, len(groups), count, width)
            for s, count in enumerate(tables.tokens)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = _Saved(ctx.sizes, ctx.groups, *ctx.saved_tensors)
        weight_grads: list[Tensor] = []
        sums: list[Tensor] = []
        with _device(saved.signal):
            for s, grad in enumerate(grads):
                of_weights, of_vectors = _scale_backward(saved, s, grad)
                weight_grads += of_weights
                sums.append(of_vectors)
        per_scale = torch.stack(sums)  # (S, B, G, 3, D): ln_weight, ln_bias, shift
        over_records = per_scale.sum(1).to(saved.weights.dtype)
        missing = _missing_gradient(per_scale[..., 2, :], saved.present, saved.groups).to(saved.weights.dtype)
        vector_grads = [over_records[s, :, kind] for kind in (2, 0, 1) for s in range(len(sums))]
        return (None, None, None, None, None, *weight_grads, *vector_grads, *missing.unbind(0))


@dataclass(frozen=True)
class _Saved:
    """What the forward left for the backward.

    weights: (D, columns). vectors: bias, ln_weight, ln_bias (S * G, D), then missing (S * L, D).
    """

    sizes: Sizes
    groups: Groups
    signal: Tensor
    present: Tensor
    affine: Tensor
    weights: Tensor
    vectors: Tensor
    moments: Tensor


def _scale_backward(saved: _Saved, s: int, grad: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Gradients of scale s: its weights (D, L_g, K) per group, and token sums (B, G, 3, D).

    The sums are float32, for ln_weight, ln_bias and the shift.
    """
    signal, groups, (kernel, stride) = saved.signal, saved.groups, saved.sizes[s]
    (batch, leads, samples), group_count = signal.shape, len(groups)
    width, dtype = saved.weights.shape[0], saved.weights.dtype
    chosen = tilings(width, dtype, architecture_of(signal.device))
    tables = patch_tables(samples, saved.sizes, groups, chosen.forward.tokens, STEP, signal.device)
    features = [len(group) * kernel for group in groups]
    unused = grad is None or grad.numel() == 0
    flat = (torch.zeros if unused else torch.empty)(sum(features) * width, dtype=dtype, device=signal.device)
    per_group = [
        piece.view(width, len(group), kernel)
        for piece, group in zip(flat.split([n * width for n in features]), groups, strict=True)
    ]
    if grad is None or unused:
        return per_group, torch.zeros(batch, group_count, 3, width, device=signal.device)

    grad = grad.to(dtype).contiguous()
    count, start = tables.tokens[s], batch * group_count * tables.tokens_before[s]
    rows, chunks = batch * group_count * count, triton.cdiv(width, chosen.backward.width)
    parts = min(triton.cdiv(count, chosen.backward.tokens), triton.cdiv(PROGRAMS, batch * group_count))
    read = (
        signal, saved.affine, saved.present, tables.offset, tables.lead, tables.block, tables.group,
        saved.weights, saved.vectors, saved.moments[start : start + rows], grad,
    )  # fmt: skip
    sizes = (
        samples,
        tables.columns,
        count,
        stride,
        parts,
        len(saved.sizes) * group_count,
        group_count,
        tables.group.shape[1],
        s,
    )
    constants = _constants(chosen.backward, width, leads, saved.affine)
    row_means = torch.empty(rows if chunks > 1 else 0, 2, dtype=torch.float32, device=signal.device)
    if chunks > 1:
        patch_embed_backward_rows[(batch * group_count * parts,)](*read, row_means, *sizes, **constants)
    product_grad = torch.empty_like(grad)
    part = torch.empty(batch, group_count, parts, 3, width, dtype=torch.float32, device=signal.device)
    patch_embed_backward_tokens[(batch * group_count * parts, chunks)](
        *read, row_means, product_grad, part, *sizes, **constants
    )
    _weight_gradient(saved, tables, chosen.weight, product_grad, flat, s)
    return per_group, part.sum(2)


def _weight_gradient(
    saved: _Saved, tables: PatchTables, tiling: Tiling, product_grad: Tensor, flat: Tensor, s: int
) -> None:
    """Fill `flat`, the groups' (D, features) gradients of scale s one after another.

    Partial sums over records, then their sum in fixed order.
    """
    batch, leads, samples = saved.signal.shape
    width, (first, end), count = product_grad.shape[-1], tables.scale_columns[s], tables.tokens[s]
    chunk = tables.chunk[first // STEP : end // STEP]
    across = triton.cdiv(width, tiling.width)
    splits = min(
        batch, MOST_SPLITS, max(triton.cdiv(count, tiling.tokens), triton.cdiv(WEIGHT_PROGRAMS, len(chunk) * across))
    )
    partial = torch.empty(splits, width, end - first, dtype=torch.float32, device=flat.device)
    patch_embed_backward_weight[(len(chunk), across, splits)](
        saved.signal, saved.affine, saved.present, tables.offset, tables.lead, chunk, product_grad, partial,
        batch, samples, end - first, first, count, saved.sizes[s][1], len(saved.groups), splits,
        **_constants(tiling, width, leads, saved.affine),
    )  # fmt: skip
    sum_width = min(32, triton.next_power_of_2(width))
    patch_embed_sum_partials[(len(chunk), triton.cdiv(width, sum_width))](
        partial, chunk, flat, end - first, splits, D=width, DC=sum_width, BF=STEP, num_warps=4
    )


def _missing_gradient(shift_sums: Tensor, present: Tensor, groups: Groups) -> Tensor:
    """(S, B, G, D) token sums -> (S, L, D).

    A missing lead's embedding was added to every token of its record in each of its groups.
    """
    absent = (present == 0).float()[:, None, :] * _membership(groups, present.shape[1], present.device)  # (B, G, L)
    return torch.einsum("bgl,sbgd->sld", absent, shift_sums)


@functools.lru_cache(maxsize=64)
def _membership(groups: Groups, leads: int, device: torch.device) -> Tensor:
    """(G, L) float32: how often a lead stands in a group. Made once: a copy to the device makes the host wait."""
    rows = [[float(group.count(lead)) for lead in range(leads)] for group in groups]
    return torch.tensor(rows, dtype=torch.float32, device=device)
