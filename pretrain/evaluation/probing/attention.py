"""The attention-pooled probe: a learnt query over frozen tokens, and a linear map of what it gathers.

It starts where the query looks at all tokens alike and the map is the linear probe of their mean, and goes on for as
long as the validation records gain: it is never worse on them than the probe of the mean.
Legend: B batch, N tokens, D token width, C classes.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cardialign.pretrain.evaluation.probing.linear_probe import (
    STRENGTHS,
    Learnable,
    Parts,
    ProbeFit,
    learnable,
    unseen_classes,
)
from cardialign.pretrain.evaluation.probing.logistic import fit_path
from cardialign.pretrain.evaluation.probing.tokens import Tokens
from cardialign.pretrain.evaluation.scoring import decided_at

BATCH, ROUNDS, PATIENCE = 64, 60, 10
STEPS = 10
"""A round is a pass over the training records, or so many steps where they are few."""
QUERY_RATE, HEAD_RATE = 0.05, 0.005


class AttentionProbe(nn.Module):
    """tokens (B, N, D), mask bool (B, N) -> log odds (B, C). mean, scale (D,): of the training tokens."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.query = nn.Parameter(torch.zeros(len(mean)))
        self.head = nn.utils.skip_init(nn.Linear, len(mean), classes)  # it is set from the probe of the mean

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, D): the mean of the tokens weighed by their likeness to the query; 0 for a record without any."""
        standard = (tokens - self.mean) * self.scale
        likeness = standard @ self.query / len(self.mean) ** 0.5
        weights = torch.softmax(likeness.masked_fill(~mask, -torch.inf), dim=1)
        weights = torch.where(mask.any(dim=1, keepdim=True), weights, 0.0)
        return (weights[..., None] * standard).sum(dim=1)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.pool(tokens, mask))


def attention_probe(
    tokens: Tokens,
    truth: np.ndarray,
    parts: Parts,
    share: float = 1.0,
    style: str = "random",
    seed: int = 0,
    decided: np.ndarray | None = None,
) -> ProbeFit:
    """Tokens of n records, truth bool (n, C) -> the probe of the epoch that the validation records choose.

    decided bool (n, C), None = all: a class is learnt from these records, and chosen by them.
    The penalty is that of the linear probe of the mean token, chosen on validation. Equal input gives equal scores.
    Raises ValueError as `linear_probe.probe`.
    """
    known = learnable(truth, parts, decided, share, style, seed)
    rows, learnt = known.rows, known.learnt
    model = AttentionProbe(*_statistics(tokens, rows), len(learnt))
    path = fit_path(_pooled(model, tokens, rows), known.truth[rows], STRENGTHS, decided_at(known.decided, rows))
    middle = _pooled(model, tokens, parts.validation)
    best, _ = known.choose([each.scores(middle) for each in path], parts.validation)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(path[best].weights.T))
        model.head.bias.copy_(torch.from_numpy(path[best].intercepts))
    model, value = _trained(model, tokens, known, path[best].strength, parts.validation, seed)
    scores = np.zeros((len(parts.test), truth.shape[1]))
    scores[:, learnt] = _scores(model, tokens, parts.test)
    unseen = unseen_classes(learnt, truth.shape[1])
    return ProbeFit(share, style, seed, len(rows), path[best].strength, value, scores, unseen)


def _trained(
    model: AttentionProbe,
    tokens: Tokens,
    known: Learnable,
    strength: float,
    validation: np.ndarray,
    seed: int,
) -> tuple[AttentionProbe, float]:
    rows = known.rows

    def judge() -> float:
        return known.macro(_scores(model, tokens, validation), validation)

    draw = np.random.default_rng([seed, 2])
    groups = [
        {"params": [model.query], "lr": QUERY_RATE},
        {"params": list(model.head.parameters()), "lr": HEAD_RATE},
    ]
    optimizer = torch.optim.Adam(groups)
    value, best, at = judge(), copy.deepcopy(model.state_dict()), 0
    for round_ in range(1, ROUNDS + 1):
        passes = max(1, -(-STEPS * BATCH // len(rows)))
        order = np.concatenate([draw.permutation(len(rows)) for _ in range(passes)])
        for start in range(0, len(order), BATCH):
            _step(model, optimizer, tokens, known, rows[order[start : start + BATCH]], strength)
        found = judge()
        if found > value:
            value, best, at = found, copy.deepcopy(model.state_dict()), round_
        if round_ - at >= PATIENCE:
            break
    model.load_state_dict(best)
    return model, value


def _step(
    model: AttentionProbe,
    optimizer: torch.optim.Optimizer,
    tokens: Tokens,
    known: Learnable,
    some: np.ndarray,
    strength: float,
) -> None:
    values, mask = map(torch.from_numpy, tokens.rows(some))
    wanted, decided = torch.from_numpy(known.truth[some]).float(), decided_at(known.decided, some)
    losses = F.binary_cross_entropy_with_logits(model(values, mask), wanted, reduction="none")
    if decided is not None:
        losses = losses * torch.from_numpy(decided)
    loss = losses.sum(1).mean() + 0.5 * model.head.weight.square().sum() / (strength * len(known.rows))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _statistics(tokens: Tokens, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation (D,) over the tokens of these records that mean something."""
    D = tokens.values.shape[-1]
    total, squares, count = np.zeros(D), np.zeros(D), 0
    for start in range(0, len(rows), BATCH):
        values, mask = tokens.rows(rows[start : start + BATCH])
        exact = values[mask].astype(np.float64)
        total, squares, count = total + exact.sum(0), squares + (exact**2).sum(0), count + len(exact)
    if not np.isfinite(total).all():
        raise ValueError("the tokens hold values that are not finite")
    mean = total / max(count, 1)
    deviation = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 0.0))
    scale = np.where(deviation > 1e-6 * np.maximum(np.abs(mean), 1.0), 1.0 / np.maximum(deviation, 1e-300), 0.0)
    return torch.from_numpy(mean).float(), torch.from_numpy(scale).float()


@torch.inference_mode()
def _pooled(model: AttentionProbe, tokens: Tokens, rows: np.ndarray) -> np.ndarray:
    parts = [model.pool(*_batch(tokens, rows, start)).double().numpy() for start in range(0, len(rows), BATCH)]
    return np.concatenate(parts)


@torch.inference_mode()
def _scores(model: AttentionProbe, tokens: Tokens, rows: np.ndarray) -> np.ndarray:
    parts = [model(*_batch(tokens, rows, start)).double().numpy() for start in range(0, len(rows), BATCH)]
    return np.concatenate(parts)


def _batch(tokens: Tokens, rows: np.ndarray, start: int) -> tuple[Tensor, Tensor]:
    values, mask = tokens.rows(rows[start : start + BATCH])
    return torch.from_numpy(values), torch.from_numpy(mask)
