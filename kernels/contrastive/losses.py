"""Contrastive losses over the global batch: the public functions, each with its formula and its source.

Common to all. ecg, text: (b, d), row i of one matching row i of the other; b may differ between ranks and be 0. The
value is that of the global batch (B pairs), the same on every rank. Gradients are exactly d(global loss)/d(local
tensor), not multiplied by the world size; those of log_scale and bias are the global gradients on every rank. Every
rank of the group must call it, forward and backward.
    similarity  what is known about the local reports; a constant of the loss, never differentiated
    log_scale   one element, the logarithm of the inverse temperature; fixed where it needs no gradient, learnt where it
                does
    execution   over which ranks and how: it changes time and memory, never the value beyond rounding
bf16 and fp16 operands are accumulated in float32, float64 stays float64. Raises ValueError for operands that do not fit
together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cardialign.kernels.contrastive.execution import DEFAULT, Execution
from cardialign.kernels.contrastive.plan import make_plan
from cardialign.kernels.contrastive.pointwise import PairLoss, PointwiseLoss
from cardialign.kernels.contrastive.similarity import NegativeWeights, Similarity
from cardialign.kernels.contrastive.soft_targets import SoftTargets
from cardialign.kernels.contrastive.softmax import SoftmaxLoss

ALL_COUNT = NegativeWeights("none", drop_duplicates=False)
NO_TARGETS = SoftTargets("none", match_duplicates=False)


@dataclass(frozen=True)
class ContrastiveOutput:
    """loss: 0-dim, differentiable.

    effective_negatives: 0-dim, mean over the global batch of sum_{j!=i} alpha_ij, detached.
    """

    loss: Tensor
    effective_negatives: Tensor


def infonce(ecg: Tensor, text: Tensor, log_scale: Tensor, execution: Execution = DEFAULT) -> Tensor:
    """InfoNCE (0-dim), both directions averaged, mean over the global batch; ecg, text L2-normalised.

    Source: CLIP (Radford et al. 2021).
    """
    return weighted_infonce(ecg, text, log_scale, Similarity(), ALL_COUNT, execution).loss


def weighted_infonce(
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor,
    similarity: Similarity,
    weights: NegativeWeights,
    execution: Execution = DEFAULT,
) -> ContrastiveOutput:
    """DiagSim-weighted InfoNCE: a negative counts alpha(S_ij) in the denominators. ecg, text L2-normalised.

    Source: DiagSim weighting of negatives; negatives-only log-sum-exp as in `torch_softmax`.
    """
    return _softmax(ecg, text, log_scale, similarity, weights, None, execution)


def soft_target_infonce(
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor,
    similarity: Similarity,
    targets: SoftTargets,
    execution: Execution = DEFAULT,
) -> Tensor:
    """Cross-entropy (0-dim) against soft labels y_ii = 1, y_ij = targets(S_ij); ecg, text L2-normalised.

        L = 1/2B sum_i H(y_i. / sum_j y_ij, softmax_j s_ij) + H(y_.i / sum_j y_ji, softmax_j s_ji)

    The ECG-to-text direction normalises labels along its row, text-to-ECG along its column. Hard labels (form "none"
    without duplicates) give InfoNCE. Source: soft labels as in CLIP variants; the mapping is ours.
    """
    return _softmax(ecg, text, log_scale, similarity, ALL_COUNT, targets, execution).loss


def siglip(
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    similarity: Similarity | None = None,
    targets: SoftTargets | None = None,
    execution: Execution = DEFAULT,
) -> Tensor:
    """Sigmoid loss (0-dim) with y_ii = 1, y_ij = targets(S_ij); ecg, text L2-normalised.

        L = 1/B sum_ij softplus(l_ij) - y_ij l_ij,   l_ij = exp(log_scale) ecg_i.text_j + bias

    bias: one element. Without targets y_ij = 0, the published loss; usual starts are log_scale = log 10, bias = -10.
    Source: SigLIP (Zhai et al. 2023); soft targets as in FOCAL.
    """
    similarity = Similarity() if similarity is None else similarity
    targets = NO_TARGETS if targets is None else targets
    own = torch.ones(len(ecg), device=ecg.device)
    return _pointwise(PairLoss("logistic", own, similarity, targets, power=1), ecg, text, log_scale, bias, execution)


def ets(ecg: Tensor, text: Tensor, aligned: Tensor | None = None, execution: Execution = DEFAULT) -> Tensor:
    """ECG-text sigmoid loss (0-dim): y_ij = -1 for i != j, y_ii = +1, or -1 where the pair is not aligned.

        L = -1/B^2 sum_ij log sigmoid(y_ij ecg_i.text_j)

    ecg, text are not normalised, and there is neither temperature nor bias. aligned: bool (b,), False where the text of
    the pair was replaced by a negative; None when none was.
    Source: D-BETA (ICML 2025), with the mean over B^2 of its code.
    """
    if aligned is None:
        aligned = torch.ones(len(ecg), dtype=torch.bool, device=ecg.device)
    if aligned.dtype != torch.bool or aligned.shape != ecg.shape[:1]:
        raise ValueError(
            f"aligned is {aligned.dtype} {tuple(aligned.shape)} for a batch of {len(ecg)}; pass one bool per pair"
        )
    # log sigmoid(y l) with y = +-1 is -(softplus(l) - (y + 1)/2 l)
    return _pointwise(
        PairLoss("logistic", aligned, Similarity(), NO_TARGETS, power=2), ecg, text, None, None, execution
    )


def false_negative_mitigation(
    ecg: Tensor, text: Tensor, similarity: Similarity | None, execution: Execution = DEFAULT
) -> Tensor:
    """Pulls the cosine of a pair to the similarity of its reports (0-dim); S_ii = 1, ecg, text L2-normalised.

        L = 1/B sum_ij |ecg_i.text_j - S_ij|

    S is a constant, also where `similarity` holds the trained text embeddings themselves: differentiated, the term
    falls when all reports move together. S = 1 where duplicate keys are equal. similarity None: S_ij = text_i.text_j,
    differentiated all the same. Source: FG-CLEP, L_fnm.
    """
    if similarity is None:
        # |e_i.t_j - t_i.t_j| = |(e_i - t_i).t_j|: a target of 0 for every pair; what t_i.t_i adds to the gradient runs
        # along t_i, where a unit vector has none
        nothing = torch.zeros(len(ecg), device=ecg.device)
        return _pointwise(
            PairLoss("absolute", nothing, Similarity(), NO_TARGETS, power=1), ecg - text, text, None, None, execution
        )
    own = torch.ones(len(ecg), device=ecg.device)
    pairs = PairLoss("absolute", own, similarity, SoftTargets("identity"), power=1)
    return _pointwise(pairs, ecg, text, None, None, execution)


def _softmax(
    ecg: Tensor,
    text: Tensor,
    log_scale: Tensor,
    similarity: Similarity,
    weights: NegativeWeights,
    targets: SoftTargets | None,
    execution: Execution,
) -> ContrastiveOutput:
    _check(ecg, text, similarity, log_scale=log_scale)
    plan = make_plan(ecg, text, similarity, execution, {"loss": 0 if targets is None else 1})
    return ContrastiveOutput(*SoftmaxLoss.apply(ecg, text, log_scale, similarity, weights, targets, plan))


def _pointwise(
    pairs: PairLoss, ecg: Tensor, text: Tensor, log_scale: Tensor | None, bias: Tensor | None, execution: Execution
) -> Tensor:
    _check(ecg, text, pairs.similarity, log_scale=log_scale, bias=bias)
    operands = [x for x in (ecg, text, log_scale, bias) if x is not None]
    # The forward pass makes the gradients, with a collective of its own: all ranks must agree about it.
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in operands)
    agreed = {"loss": 2 if pairs.form == "logistic" else 3, "need of gradients": int(wanted)}
    plan = make_plan(ecg, text, pairs.similarity, execution, agreed)
    loss: Tensor = PointwiseLoss.apply(ecg, text, log_scale, bias, pairs, plan, wanted)
    return loss


def _check(ecg: Tensor, text: Tensor, similarity: Similarity, **scalars: Tensor | None) -> None:
    if ecg.ndim != 2 or ecg.shape != text.shape:
        raise ValueError(
            f"ecg {tuple(ecg.shape)} and text {tuple(text.shape)} must both be (b, d); "
            "pass matching embeddings of one width"
        )
    if not (ecg.is_floating_point() and text.is_floating_point()):
        raise ValueError(f"ecg {ecg.dtype} and text {text.dtype} must be floating point; convert them first")
    meanings = {"log_scale": "the log of the inverse temperature", "bias": "what is added to every logit"}
    for name, value in scalars.items():
        if value is not None and value.numel() != 1:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; pass one element, {meanings[name]}")
    similarity.check_rows(ecg.shape[0])
