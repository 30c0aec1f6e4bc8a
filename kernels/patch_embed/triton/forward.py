"""Triton forward of the fused patch embedding: implicit GEMM straight from the signal, token-major store.

LayerNorm and GELU are done in registers. Only `backend` imports this module, so that CPU users need no Triton.
A block is one (scale, group); a column is one (lead of the group, sample of the kernel) of a block, padded to whole BF;
a row is one token. All tables are int32 (`tables`).
    signal_ptr              (batch, LEADS, samples), counts or the caller's unit
    affine_ptr              (batch, LEADS, 2) float32, slope and centre of every lead; read where AFFINE
    present_ptr             (batch, LEADS) uint8, 0 = missing
    offset_ptr, lead_ptr    (columns,) sample offset in a record (-1 = padding), lead
    tile_ptr                (tiles, 8) what one program of the forward makes
    block_ptr               (blocks, 2) padded features, first column
    group_ptr               (groups, group_fields) number of leads, leads
    weight_ptr              (D, columns)
    vector_ptr              bias, ln_weight, ln_bias (blocks, D) each, then missing (scales * LEADS, D)
    moment_ptr              (rows, 2) float32, mean and rstd of LayerNorm
    batch, samples          records, samples of a lead
    columns, tiles          lengths of those tables
    blocks, groups          (scale, group) pairs, lead groups
    group_fields            row length of group_ptr
    tokens, stride          tokens of the scale at work, samples from one to the next
    b, block, group, scale  of the record and block at work
    first, features         first column of the block, and how many it has, padded
    d                       (DC,) the chunk of the width at work
    token, in_range         (BT,) tokens of the scale, and whether there are such
    LEADS, D                leads of a record, width of a token
    DC, BT, BF              width, tokens and columns of one step
    PRECISION               of float32 products, as `tl.dot` names it
"""

from __future__ import annotations

import triton
import triton.language as tl

# Sizes that change from batch to batch must not compile a new variant
# when one of them happens to be 1 or a multiple of 16.
VARYING = [
    "batch",
    "samples",
    "tiles",
    "tokens",
    "stride",
    "parts",
    "splits",
    "blocks",
    "groups",
    "group_fields",
    "scale",
    "first_column",
]


@triton.jit
def patch_window(
    signal_ptr, affine_ptr, present_ptr, offset_ptr, lead_ptr, b, column, token, in_range, stride, samples,
    LEADS: tl.constexpr, BF: tl.constexpr, AFFINE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(BT, BF) operand: sample `offset` of every token's patch, normalised.

    0 for missing leads, padded columns and tokens past the end. column: the first one, a multiple of BF.
    """
    f = column + tl.arange(0, BF)
    offset = tl.load(offset_ptr + f)
    lead = b * LEADS + tl.load(lead_ptr + f)
    used = (offset >= 0) & (tl.load(present_ptr + lead) != 0)
    where = b.to(tl.int64) * LEADS * samples + token[:, None] * stride + offset[None, :]
    # What a missing lead holds is never loaded: NaN times 0 is NaN.
    mask = in_range[:, None] & used[None, :]
    x = tl.load(signal_ptr + where, mask=mask, other=0).to(tl.float32)
    if AFFINE:
        slope = tl.load(affine_ptr + lead * 2)
        centre = tl.load(affine_ptr + lead * 2 + 1)
        x = tl.where(mask, x * slope[None, :] - centre[None, :], 0.0)
    return x.to(DTYPE)


@triton.jit
def patch_product(
    signal_ptr, affine_ptr, present_ptr, offset_ptr, lead_ptr, weight_ptr,
    b, first, features, columns, token, in_range, stride, samples, d,
    LEADS: tl.constexpr, D: tl.constexpr, DC: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
    AFFINE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(BT, DC) float32: patches times the weights of one block and the width chunk d. weight is (D, columns)."""
    product = tl.zeros((BT, DC), dtype=tl.float32)
    f = tl.arange(0, BF)
    for f0 in range(0, features, BF):
        # Blocks begin at multiples of BF; said to the compiler, weight rows are loaded 16 bytes at a time.
        column = tl.multiple_of(first + f0, BF)
        patches = patch_window(
            signal_ptr, affine_ptr, present_ptr, offset_ptr, lead_ptr, b, column, token, in_range, stride, samples,
            LEADS, BF, AFFINE, weight_ptr.dtype.element_ty,
        )  # fmt: skip
        weight = tl.load(weight_ptr + (d * columns)[None, :] + (column + f)[:, None], mask=(d < D)[None, :], other=0.0)
        product = tl.dot(patches, weight, product, input_precision=PRECISION)
    return product


@triton.jit
def record_shift(
    present_ptr, group_ptr, vector_ptr, b, group, group_fields, block, blocks, scale, d,
    LEADS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """(factor, shift (DC,)) of one record and block.

    L_g / present, and bias plus the embedding of every missing lead.
    """
    shift = tl.load(vector_ptr + block * D + d, mask=d < D, other=0.0).to(tl.float32)
    count = tl.load(group_ptr + group * group_fields)
    found = count * 0
    for i in range(count):
        lead = tl.load(group_ptr + group * group_fields + 1 + i)
        here = tl.load(present_ptr + b * LEADS + lead).to(tl.int32)
        found += here
        row = 3 * blocks + scale * LEADS + lead
        shift += tl.load(vector_ptr + row * D + d, mask=(d < D) & (here == 0), other=0.0).to(tl.float32)
    factor = count.to(tl.float32) / tl.maximum(found, 1).to(tl.float32)
    return factor, shift


@triton.jit
def normal_cdf(u):
    """(Phi(u), exp(-u^2 / 2)) with |error of Phi| < 8e-8: Abramowitz and Stegun 7.1.26.

    Half the registers of erf, and GELU' needs the bell.
    """
    bell = tl.exp(-0.5 * u * u)
    t = 1.0 / (1.0 + 0.2316418882 * tl.abs(u))
    tail = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)))) * bell
    return tl.where(u >= 0, 1.0 - tail, tail), bell


@triton.jit
def store_tokens(z, mean, rstd, out_ptr, vector_ptr, row, in_range, block, blocks, d, D: tl.constexpr):
    gamma = tl.load(vector_ptr + (blocks + block) * D + d, mask=d < D, other=0.0).to(tl.float32)
    beta = tl.load(vector_ptr + (2 * blocks + block) * D + d, mask=d < D, other=0.0).to(tl.float32)
    u = (z - mean[:, None]) * rstd[:, None] * gamma[None, :] + beta[None, :]
    phi, _ = normal_cdf(u)
    tl.store(
        out_ptr + row[:, None] * D + d[None, :],
        (u * phi).to(out_ptr.dtype.element_ty),
        mask=in_range[:, None] & (d < D)[None, :],
    )


@triton.jit(do_not_specialize=VARYING)
def patch_embed_forward(
    signal_ptr, affine_ptr, present_ptr, offset_ptr, lead_ptr, tile_ptr, group_ptr, weight_ptr, vector_ptr,
    out_ptr, moment_ptr, batch, samples, columns, tiles, blocks, groups, group_fields, eps,
    LEADS: tl.constexpr, D: tl.constexpr, DC: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr,
    AFFINE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (batch * tiles,): one program makes BT tokens of one block of one record, whole width.

    All scales and groups are made in one launch. A width above DC is made twice in chunks (statistics, then values):
    registers stay bounded.
        out_ptr    (rows, D); scale s holds rows batch * groups * (tokens of the scales before) + (b * groups + g) * N_s
                   + t
        eps        of LayerNorm
    """
    pid = tl.program_id(0)
    b = pid // tiles
    field = tile_ptr + (pid % tiles) * 8
    start = tl.load(field)
    tokens = tl.load(field + 1)
    stride = tl.load(field + 2)
    features = tl.load(field + 3)
    first = tl.load(field + 4)
    block = tl.load(field + 5)
    before = tl.load(field + 6)
    scale = block // groups
    group = block % groups

    token = start + tl.arange(0, BT)
    in_range = token < tokens
    row = batch.to(tl.int64) * groups * before + (b.to(tl.int64) * groups + group) * tokens + token
    mean = tl.zeros((BT,), dtype=tl.float32)
    square = tl.zeros((BT,), dtype=tl.float32)
    if D <= DC:
        d = tl.arange(0, DC)
        factor, shift = record_shift(
            present_ptr, group_ptr, vector_ptr, b, group, group_fields, block, blocks, scale, d, LEADS, D
        )
        z = patch_product(
            signal_ptr, affine_ptr, present_ptr, offset_ptr, lead_ptr, weight_ptr,
            b, first, features, columns, token, in_range, stride, samples, d,
            LEADS, D, DC, BT, BF, AFFINE, PRECISION,
        )  # fmt: skip
        z = z * factor + shift[None, :]  # columns beyond D are 0
        mean = tl.sum(z, 1) / D
        centred = tl.where((d < D)[None, :], z - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
        store_tokens(z, mean, rstd, out_ptr, vector_ptr, row, in_range, block, blocks, d, D)
    else:
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
            z = z * factor + shift[None, :]
            # Chan's merge of (count, mean, sum of squared deviations): as exact as one pass over the whole row.
            width = tl.sum((d < D).to(tl.float32), 0)
            chunk_mean = tl.sum(z, 1) / width
            centred = tl.where((d < D)[None, :], z - chunk_mean[:, None], 0.0)
            delta = chunk_mean - mean
            mean += delta * (width / (c + width))
            square += tl.sum(centred * centred, 1) + delta * delta * (c * width / (c + width))
        rstd = tl.rsqrt(square / D + eps)
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
            store_tokens(
                z * factor + shift[None, :], mean, rstd, out_ptr, vector_ptr, row, in_range, block, blocks, d, D
            )
    tl.store(moment_ptr + row * 2, mean, mask=in_range)
    tl.store(moment_ptr + row * 2 + 1, rstd, mask=in_range)
