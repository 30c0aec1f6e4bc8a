"""Contrastive losses over the global batch: the public functions, and the one place that chooses scheme and backend.

Common to all. ecg, text: (b, d), row i of one matching row i of the other; b may differ between ranks and be 0. The value is that of the global
batch (B pairs), the same on every rank. Gradients are exactly d(global loss)/d(local tensor), not multiplied by the world size; those of
log_scale and bias are the global gradients on every rank. Every rank of the group must call it, forward and backward.
    similarity  what is known about the local reports; a constant of the loss, never differentiated
    log_scale   one element, the logarithm of the inverse temperature; fixed where it needs no gradient, learnt where it does
    group       None is the default group where torch.distributed is initialised, a single process otherwise
    chunk       side of a tile. Forward and backward hold chunk x chunk tiles, never b x B
    scheme      how columns reach a rank (contrastive_ranks): "gather", "ring", or "auto": ring when gathering would take more than
                RING_ABOVE_BYTES on a rank
    backend     who computes the tiles: "torch", "triton", or "auto": PyTorch, and Triton on CUDA from TRITON_FROM_LOGITS logits on where
                `cardialign.kernels.dispatch` allows it
bf16 and fp16 operands are accumulated in float32, float64 stays float64. Raises ValueError for operands that do not fit together.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from cardialign.kernels.contrastive.blocks import TORCH, Blocks
from cardialign.kernels.contrastive.exchange import Alone, Exchange, Gather, exchange_layout
from cardialign.kernels.contrastive.pointwise import PointwiseLoss
from cardialign.kernels.contrastive.ring import Ring
from cardialign.kernels.contrastive.similarity import NegativeWeights, Similarity
from cardialign.kernels.contrastive.soft_targets import SoftTargets
from cardialign.kernels.contrastive.softmax import SoftmaxLoss
from cardialign.kernels.contrastive.torch_pointwise import Form
from cardialign.kernels.contrastive.torch_softmax import accumulation_dtype
from cardialign.kernels.dispatch import triton_by_default

__all__ = [
    "ContrastiveOutput",
    "NegativeWeights",
    "Similarity",
    "SoftTargets",
    "ets",
    "false_negative_mitigation",
    "infonce",
    "siglip",
    "soft_target_infonce",
    "weighted_infonce",
]

Scheme = Literal["auto", "gather", "ring"]
Backend = Literal["auto", "torch", "triton"]

RING_ABOVE_BYTES = 1 << 30
"""Gathered text and similarity features plus the accumulated gradient of all text. 65,536 pairs, d 512, d_s 128 in bf16: 0.2 GiB."""

TRITON_FROM_LOGITS = 1 << 20
"""Below, a launch costs more than the tiles (counted, not yet measured on a GPU)."""

ALL_COUNT = NegativeWeights("none", drop_duplicates=False)


@dataclass(frozen=True)
class ContrastiveOutput:
    """loss (0-dim, differentiable) and effective_negatives (0-dim, mean over the global batch of sum_{j!=i} alpha_ij, detached)."""

    loss: Tensor
    effective_negatives: Tensor


def infonce(
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    chunk: int = 1024,
    scheme: Scheme = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """InfoNCE (0-dim), both directions averaged, mean over the global batch; ecg, text L2-normalised. Source: CLIP (Radford et al. 2021)."""
    return weighted_infonce(
        ecg, text, log_scale, Similarity(), ALL_COUNT, group=group, chunk=chunk, scheme=scheme, backend=backend
    ).loss


def weighted_infonce(
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor,
    similarity: Similarity,
    weights: NegativeWeights,
    *,
    group: dist.ProcessGroup | None = None,
    chunk: int = 1024,
    scheme: Scheme = "auto",
    backend: Backend = "auto",
) -> ContrastiveOutput:
    """DiagSim-weighted InfoNCE: a negative counts alpha(S_ij) in the denominators. ecg, text L2-normalised.

    Source: DiagSim weighting of negatives; negatives-only log-sum-exp as in contrastive_chunked.
    """
    return _softmax(ecg, text, log_scale, similarity, weights, None, group, chunk, scheme, backend)


def soft_target_infonce(
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor,
    similarity: Similarity,
    targets: SoftTargets,
    *,
    group: dist.ProcessGroup | None = None,
    chunk: int = 1024,
    scheme: Scheme = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """Cross-entropy (0-dim) against soft labels: L = 1/2B sum_i H(y_i. / sum_j y_ij, softmax_j s_ij) + H(y_.i / sum_j y_ji, softmax_j s_ji).

    y_ii = 1, y_ij = targets(S_ij): the ECG-to-text direction normalises labels along its row, text-to-ECG along its column. ecg, text
    L2-normalised. Hard labels (form "none" without duplicates) give InfoNCE. Source: soft labels as in CLIP variants; the mapping is ours.
    """
    return _softmax(ecg, text, log_scale, similarity, ALL_COUNT, targets, group, chunk, scheme, backend).loss


def siglip(
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    similarity: Similarity | None = None,
    targets: SoftTargets | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    chunk: int = 1024,
    scheme: Scheme = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """Sigmoid loss (0-dim): L = 1/B sum_ij softplus(l) - y_ij l, l_ij = exp(log_scale) ecg_i.text_j + bias, y_ii = 1, y_ij = targets(S_ij).

    bias: one element. Without targets y_ij = 0, the published loss; usual starts are log_scale = log 10, bias = -10. ecg, text L2-normalised.
    Source: SigLIP (Zhai et al. 2023); soft targets as in FOCAL.
    """
    similarity = Similarity() if similarity is None else similarity
    targets = SoftTargets("none", match_duplicates=False) if targets is None else targets
    own = torch.ones(len(ecg), device=ecg.device)
    return _pointwise(
        "logistic", ecg, text, log_scale, bias, own, similarity, targets, 1, group, chunk, scheme, backend
    )


def ets(
    ecg: Tensor,
    text: Tensor,
    aligned: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    chunk: int = 1024,
    scheme: Scheme = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """ECG-text sigmoid loss (0-dim): L = -1/B^2 sum_ij log sigmoid(y_ij ecg_i.text_j), y = -1 for i != j, y_ii = +1, or -1 where not aligned.

    ecg, text are not normalised, and there is neither temperature nor bias. aligned: bool (b,), False where the text of the pair was replaced by a
    negative; None when none was. Source: D-BETA (ICML 2025), with the mean over B^2 of its code.
    """
    if aligned is None:
        aligned = torch.ones(len(ecg), dtype=torch.bool, device=ecg.device)
    if aligned.dtype != torch.bool or aligned.shape != ecg.shape[:1]:
        raise ValueError(
            f"aligned is {aligned.dtype} {tuple(aligned.shape)} for a batch of {len(ecg)}; pass one bool per pair"
        )
    # log sigmoid(y l) with y = +-1 is -(softplus(l) - (y + 1)/2 l)
    nothing = SoftTargets("none", match_duplicates=False)
    return _pointwise(
        "logistic", ecg, text, None, None, aligned, Similarity(), nothing, 2, group, chunk, scheme, backend
    )


def false_negative_mitigation(
    ecg: Tensor,
    text: Tensor,
    similarity: Similarity,
    *,
    group: dist.ProcessGroup | None = None,
    chunk: int = 1024,
    scheme: Scheme = "auto",
    backend: Backend = "auto",
) -> Tensor:
    """Pulls the cosine of a pair to the similarity of its reports (0-dim): L = 1/B sum_ij |ecg_i.text_j - S_ij|, S_ii = 1.

    ecg, text L2-normalised. S is a constant, also where `similarity` holds the trained text embeddings themselves: differentiated, the term falls
    when all reports move together. S = 1 where duplicate keys are equal. Source: FG-CLEP, L_fnm.
    """
    own = torch.ones(len(ecg), device=ecg.device)
    return _pointwise(
        "absolute", ecg, text, None, None, own, similarity, SoftTargets("identity"), 1, group, chunk, scheme, backend
    )


def _softmax(
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor,
    similarity: Similarity,
    weights: NegativeWeights,
    targets: SoftTargets | None,
    group: dist.ProcessGroup | None,
    chunk: int,
    scheme: Scheme,
    backend: Backend,
) -> ContrastiveOutput:
    _check(ecg, text, similarity, chunk, log_scale=log_scale)
    exchange = choose_exchange(ecg, text, similarity, group, scheme, {"loss": 0 if targets is None else 1})
    blocks = choose_blocks(backend, ecg.device, len(ecg) * exchange.layout.batch)
    return ContrastiveOutput(
        *SoftmaxLoss.apply(ecg, text, log_scale, similarity, weights, targets, exchange, blocks, chunk)
    )


def _pointwise(
    form: Form,
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor | None,
    bias: Tensor | None,
    own: Tensor,
    similarity: Similarity,
    targets: SoftTargets,
    power: int,
    group: dist.ProcessGroup | None,
    chunk: int,
    scheme: Scheme,
    backend: Backend,
) -> Tensor:
    """power: the mean is over B to the `power`."""
    _check(ecg, text, similarity, chunk, log_scale=log_scale, bias=bias)
    operands = [x for x in (ecg, text, log_scale, bias) if x is not None]
    # The forward pass makes the gradients, with a collective of its own: all ranks must agree about it.
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in operands)
    agreed = {"loss": 2 if form == "logistic" else 3, "need of gradients": int(wanted)}
    exchange = choose_exchange(ecg, text, similarity, group, scheme, agreed)
    blocks = choose_blocks(backend, ecg.device, len(ecg) * exchange.layout.batch)
    mean_over = exchange.layout.batch**power
    loss: Tensor = PointwiseLoss.apply(
        ecg, text, log_scale, bias, own, form, similarity, targets, mean_over, exchange, wanted, blocks, chunk
    )
    return loss


def choose_exchange(
    ecg: Tensor,
    text: Tensor,
    similarity: Similarity,
    group: dist.ProcessGroup | None,
    scheme: Scheme,
    agreed: dict[str, int],
) -> Exchange:
    """The scheme for this batch, the same on every rank; over ranks this is a collective (sizes, and `agreed` facts, are exchanged)."""
    if scheme not in get_args(Scheme):
        raise ValueError(f"unknown scheme {scheme!r}; use one of {', '.join(get_args(Scheme))}")
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1):
        if ecg.shape[0] == 0:
            raise ValueError("the batch is empty; pass at least one pair")
        return Alone(len(ecg))
    layout = exchange_layout(ecg, similarity, group, {"scheme": get_args(Scheme).index(scheme), **agreed})
    features = similarity.features
    per_pair = ecg.shape[1] * (text.element_size() + accumulation_dtype(ecg, text).itemsize)
    per_pair += 0 if features is None else features.shape[1] * features.element_size()
    ring = layout.batch * per_pair > RING_ABOVE_BYTES if scheme == "auto" else scheme == "ring"
    return Ring(layout) if ring else Gather(layout)


def choose_blocks(backend: Backend, device: torch.device, logits: int) -> Blocks:
    """The block functions for `logits` = b x B logits on this rank. Raises ValueError when Triton is asked for and not available."""
    if backend not in get_args(Backend):
        raise ValueError(f"unknown backend {backend!r}; use one of {', '.join(get_args(Backend))}")
    small = device.type == "cpu" or logits < TRITON_FROM_LOGITS
    if backend == "torch" or (backend == "auto" and (small or not triton_by_default("contrastive", logits, device))):
        return TORCH
    found = triton_blocks(device)
    if found is None and backend == "triton":
        raise ValueError(f"the Triton backend is not available on {device}; use backend 'auto' or 'torch'")
    return found or TORCH


def triton_blocks(device: torch.device) -> Blocks | None:
    """The Triton block functions, None where they cannot run."""
    if importlib.util.find_spec("cardialign.kernels.contrastive.triton.backend") is None:
        return None
    module = importlib.import_module("cardialign.kernels.contrastive.triton.backend")
    found: Blocks | None = module.TRITON if module.available(device) else None
    return found


def _check(ecg: Tensor, text: Tensor, similarity: Similarity, chunk: int, **scalars: Tensor | None) -> None:
    if ecg.ndim != 2 or ecg.shape != text.shape:
        raise ValueError(
            f"ecg {tuple(ecg.shape)} and text {tuple(text.shape)} must both be (b, d); pass matching embeddings of one width"
        )
    if not (ecg.is_floating_point() and text.is_floating_point()):
        raise ValueError(f"ecg {ecg.dtype} and text {text.dtype} must be floating point; convert them first")
    meanings = {"log_scale": "the log of the inverse temperature", "bias": "what is added to every logit"}
    for name, value in scalars.items():
        if value is not None and value.numel() != 1:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; pass one element, {meanings[name]}")
    if chunk < 1:
        raise ValueError(f"chunk {chunk} is not positive; choose the side of a tile, e.g. 1024")
    similarity.check_rows(ecg.shape[0])
