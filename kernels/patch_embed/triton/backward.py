"""Triton backward of the fused patch embedding: pre-activations are recomputed.

Weight gradients are summed in two stages of fixed order. One scale per launch, because autograd hands over one gradient
per scale. No atomics: two runs give the same bits. Rows are those of the scale, arguments as in `forward`, and
    grad_ptr            (rows, D) gradient of the tokens
    sum_ptr             (rows, 2) float32, the two row means of LayerNorm's backward; for widths above one chunk
    product_grad_ptr    (rows, D) in the type of the weights, gradient of patches times weights (rescaled for missing
                        leads already)
    chunk_ptr           (column chunks of the scale, 4) group, features, first feature, features of the groups before
    parts, splits       programs that share the tokens of a record, that share the records
    scale_columns, first_column    columns of the scale, and the first of them
"""

from __future__ import annotations

import triton
import triton.language as tl

from cardialign.kernels.patch_embed.triton.forward import VARYING, normal_cdf, patch_product, patch_window, record_shift


@triton.jit
def normalised_gradient(z, mean, rstd, grad_ptr, gamma, beta, row, mask, d, D: tl.constexpr):
    """(x_hat, d gelu), 0 outside the mask.

    The normalised pre-activation, and the gradient with respect to the input of GELU.
    """
    x_hat = tl.where(mask, (z - mean[:, None]) * rstd[:, None], 0.0)
    u = x_hat * gamma[None, :] + beta[None, :]
    phi, bell = normal_cdf(u)
    grad = tl.load(grad_ptr + row[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
    return x_hat, grad * (phi + u * bell * 0.3989422804014327)


@triton.jit(do_not_specialize=VARYING)
def patch_embed_backward_rows(
    signal_ptr, affine_ptr, present_ptr, offset_ptr, lead_ptr, block_ptr, group_ptr, weight_ptr, vector_ptr,
    moment_ptr, grad_ptr, sum_ptr,
    samples, columns, tokens, stride, parts, blocks, groups, group_fields, scale,
    LEADS: tl.constexpr, D: tl.constexpr, DC: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
    AFFINE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (batch * groups * parts,), only for widths above one chunk: fills sum_ptr."""
    pid = tl.program_id(0)
    part = pid % parts
    b = pid // parts // groups
    group = pid // parts % groups
    block = scale * groups + group
    features = tl.load(block_ptr + block * 2)
    first = tl.load(block_ptr + block * 2 + 1)
    for start in range(part * BT, tokens, parts * BT):
        token = start + tl.arange(0, BT)
        in_range = token < tokens
        row = (b.to(tl.int64) * groups + group) * tokens + token
        mean = tl.load(moment_ptr + row * 2, mask=in_range, other=0.0)
        rstd = tl.load(moment_ptr + row * 2 + 1, mask=in_range, other=0.0)
        with_x_hat = tl.zeros((BT,), dtype=tl.float32)
        alone = tl.zeros((BT,), dtype=tl.float32)
        for c in range(0, D, DC):
            d = c + tl.arange(0, DC)
            factor, shift = record_shift(
                present_ptr, group_ptr, vector_ptr, b, group, group_fields, block, blocks, scale, d, LEADS, D
            )
            z = patch_product(
                signal_ptr, affine_ptr, present_ptr, offset_ptr, lead_ptr, weight_ptr,
                b, first, features, columns, token, in_range, stride, samples, d,
                LEADS, D, DC, BT, BF, AFFINE, PRECISION,
            )  # fmt: skip
            gamma = tl.load(vector_ptr + (blocks + block) * D + d, mask=d < D, other=0.0).to(tl.float32)
            beta = tl.load(vector_ptr + (2 * blocks + block) * D + d, mask=d < D, other=0.0).to(tl.float32)
            mask = in_range[:, None] & (d < D)[None, :]
            x_hat, du = normalised_gradient(
                z * factor + shift[None, :], mean, rstd, grad_ptr, gamma, beta, row, mask, d, D
            )
            dx = du * gamma[None, :]
            with_x_hat += tl.sum(dx * x_hat, 1)
            alone += tl.sum(dx, 1)
        tl.store(sum_ptr + row * 2, with_x_hat / D, mask=in_range)
        tl.store(sum_ptr + row * 2 + 1, alone / D, mask=in_range)


@triton.jit(do_not_specialize=VARYING)
def patch_embed_backward_tokens(
    signal_ptr, affine_ptr, present_ptr, offset_ptr, lead_ptr, block_ptr, group_ptr, weight_ptr, vector_ptr,
    moment_ptr, grad_ptr, sum_ptr,
    product_grad_ptr, part_ptr, samples, columns, tokens, stride, parts, blocks, groups, group_fields, scale,
    LEADS: tl.constexpr, D: tl.constexpr, DC: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
    AFFINE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (batch * groups * parts, chunks of the width): fills product_grad_ptr.

    part_ptr    (batch, groups, parts, 3, D) float32: this program's sums for ln_weight, ln_bias and the shift
                (bias, missing embeddings)
    """
    pid = tl.program_id(0)
    part = pid % parts
    b = pid // parts // groups
    group = pid // parts % groups
    block = scale * groups + group
    features = tl.load(block_ptr + block * 2)
    first = tl.load(block_ptr + block * 2 + 1)
    d = tl.program_id(1) * DC + tl.arange(0, DC)
    factor, shift = record_shift(
        present_ptr, group_ptr, vector_ptr, b, group, group_fields, block, blocks, scale, d, LEADS, D
    )
    gamma = tl.load(vector_ptr + (blocks + block) * D + d, mask=d < D, other=0.0).to(tl.float32)
    beta = tl.load(vector_ptr + (2 * blocks + block) * D + d, mask=d < D, other=0.0).to(tl.float32)
    gamma_sum = tl.zeros((DC,), dtype=tl.float32)
    beta_sum = tl.zeros((DC,), dtype=tl.float32)
    shift_sum = tl.zeros((DC,), dtype=tl.float32)
    for start in range(part * BT, tokens, parts * BT):
        token = start + tl.arange(0, BT)
        in_range = token < tokens
        mask = in_range[:, None] & (d < D)[None, :]
        row = (b.to(tl.int64) * groups + group) * tokens + token
        z = patch_product(
            signal_ptr, affine_ptr, present_ptr, offset_ptr, lead_ptr, weight_ptr,
            b, first, features, columns, token, in_range, stride, samples, d,
            LEADS, D, DC, BT, BF, AFFINE, PRECISION,
        )  # fmt: skip
        mean = tl.load(moment_ptr + row * 2, mask=in_range, other=0.0)
        rstd = tl.load(moment_ptr + row * 2 + 1, mask=in_range, other=0.0)
        x_hat, du = normalised_gradient(z * factor + shift[None, :], mean, rstd, grad_ptr, gamma, beta, row, mask, d, D)
        gamma_sum += tl.sum(du * x_hat, 0)
        beta_sum += tl.sum(du, 0)
        dx = du * gamma[None, :]
        if D <= DC:
            with_x_hat = tl.sum(dx * x_hat, 1) / D
            alone = tl.sum(dx, 1) / D
        else:
            with_x_hat = tl.load(sum_ptr + row * 2, mask=in_range, other=0.0)
            alone = tl.load(sum_ptr + row * 2 + 1, mask=in_range, other=0.0)
        dz = tl.where(mask, (dx - x_hat * with_x_hat[:, None] - alone[:, None]) * rstd[:, None], 0.0)
        shift_sum += tl.sum(dz, 0)
        tl.store(
            product_grad_ptr + row[:, None] * D + d[None, :],
            (dz * factor).to(product_grad_ptr.dtype.element_ty),
            mask=mask,
        )
    out = part_ptr + pid.to(tl.int64) * 3 * D + d
    tl.store(out, gamma_sum, mask=d < D)
    tl.store(out + D, beta_sum, mask=d < D)
    tl.store(out + 2 * D, shift_sum, mask=d < D)


@triton.jit(do_not_specialize=VARYING)
def patch_embed_backward_weight(
    signal_ptr, affine_ptr, present_ptr, offset_ptr, lead_ptr, chunk_ptr, product_grad_ptr, partial_ptr,
    batch, samples, scale_columns, first_column, tokens, stride, groups, splits,
    LEADS: tl.constexpr, D: tl.constexpr, DC: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
    AFFINE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Stage one. Grid (column chunks, chunks of the width, splits).

    partial_ptr    (splits, D, scale_columns) float32, of records split, split + splits, ...
    """
    chunk = tl.program_id(0)
    split = tl.program_id(2)
    d = tl.program_id(1) * DC + tl.arange(0, DC)
    group = tl.load(chunk_ptr + chunk * 4)
    column = tl.multiple_of(first_column + chunk * BF, BF)
    tiles = (tokens + BT - 1) // BT
    records = (batch - split + splits - 1) // splits
    total = tl.zeros((DC, BF), dtype=tl.float32)
    # One flat loop: two nested short ones would not be pipelined.
    for i in range(records * tiles):
        b = split + (i // tiles) * splits
        token = (i % tiles) * BT + tl.arange(0, BT)
        in_range = token < tokens
        patches = patch_window(
            signal_ptr, affine_ptr, present_ptr, offset_ptr, lead_ptr, b, column, token, in_range, stride, samples,
            LEADS, BF, AFFINE, product_grad_ptr.dtype.element_ty,
        )  # fmt: skip
        row = (b.to(tl.int64) * groups + group) * tokens + token
        grad = tl.load(
            product_grad_ptr + row[:, None] * D + d[None, :], mask=in_range[:, None] & (d < D)[None, :], other=0.0
        )
        total = tl.dot(tl.trans(grad), patches, total, input_precision=PRECISION)
    line = (split.to(tl.int64) * D + d) * scale_columns
    tl.store(partial_ptr + line[:, None] + (chunk * BF + tl.arange(0, BF))[None, :], total, mask=(d < D)[:, None])


@triton.jit(do_not_specialize=VARYING)
def patch_embed_sum_partials(
    partial_ptr, chunk_ptr, out_ptr, scale_columns, splits, D: tl.constexpr, DC: tl.constexpr, BF: tl.constexpr
):  # fmt: skip
    """Stage two. Grid (column chunks, chunks of the width): sum over splits in their order.

    out_ptr    each group's own (D, features), one after another
    """
    chunk = tl.program_id(0)
    d = tl.program_id(1) * DC + tl.arange(0, DC)
    features = tl.load(chunk_ptr + chunk * 4 + 1)
    start = tl.load(chunk_ptr + chunk * 4 + 2)
    before = tl.load(chunk_ptr + chunk * 4 + 3)
    f = tl.arange(0, BF)
    total = tl.zeros((DC, BF), dtype=tl.float32)
    for split in range(splits):
        line = (split * D + d).to(tl.int64) * scale_columns + chunk * BF
        total += tl.load(partial_ptr + line[:, None] + f[None, :], mask=(d < D)[:, None], other=0.0)
    f += start
    out = out_ptr + before.to(tl.int64) * D + (d * features)[:, None] + f[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=(d < D)[:, None] & (f < features)[None, :])
