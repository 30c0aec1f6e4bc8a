"""The DiagSim loss, by hand in float64, and the inputs it takes from the text bank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.text.similarity import low_rank, principal_axes
from cardialign.pretrain.choices import METHODS
from cardialign.pretrain.config import parse_config
from cardialign.pretrain.methods.base import create_method
from cardialign.pretrain.methods.cardialign import STATEMENT_COLUMNS, CardiAlign, CardiAlignConfig
from cardialign.pretrain.methods.parts.two_towers import retrieval_top1
from tests.support.small_encoder import SPEC, small_config


def make(**values: Any) -> CardiAlign:
    """The method with a very small encoder; `values` are those of its section."""
    method = create_method(small_config(method=values), SPEC)
    assert isinstance(method, CardiAlign)
    return method


class Bank:
    """Six reports in memory; 1 and 4 say the same, statement sets overlap in various degrees."""

    def __init__(self, statements: list[list[int]] | None = None, width: int = 12) -> None:
        generator = np.random.default_rng(0)
        self.sets = statements or [[0, 1], [2], [0, 1, 3], [4], [2], []]
        rows = generator.normal(size=(len(self.sets), width)) + 2.0
        if statements is None:
            rows[4] = rows[1]
            rows[3] = rows[0] + 0.4 * generator.normal(size=width)  # a near relative of report 0
        self.embeddings = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
        self.keys = np.array([10, 20, 30, 40, 20, 60][: len(self.sets)], dtype=np.int64)

    def centred(self, report_ids: np.ndarray) -> np.ndarray:
        everything = self.embeddings.astype(np.float32)
        rows = everything[report_ids] - everything.mean(0)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def similarity_features(self, report_ids: np.ndarray, dim: int | None = None) -> np.ndarray:
        rows = self.centred(report_ids)
        return rows if dim is None else low_rank(rows, principal_axes(self, np.arange(len(self.embeddings)), dim)[0])

    def statement_sets(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = [self.sets[i] for i in report_ids]
        return np.cumsum([0, *map(len, chosen)]), np.array([s for row in chosen for s in row], dtype=np.int64)

    def report_keys(self, report_ids: np.ndarray) -> np.ndarray:
        return self.keys[report_ids]


REPORTS = np.array([0, 1, 2, 3, 4, 5, 0, 1], dtype=np.int64)


def alpha_by_hand(S: np.ndarray, config: CardiAlignConfig) -> np.ndarray:
    if config.weighting == "ramp":
        return np.clip((config.high - S) / (config.high - config.low), 0.0, 1.0)
    if config.weighting == "exponential":
        return np.where(config.high <= S, 0.0, np.exp(-config.gamma * np.maximum(S - config.low, 0.0)))
    return np.ones_like(S)


def similarity_by_hand(bank: Bank, kind: str) -> np.ndarray:
    n = len(REPORTS)
    S = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            a, b = REPORTS[i], REPORTS[j]
            if kind == "embedding":
                S[i, j] = float(
                    bank.centred(np.array([a]))[0].astype(np.float64)
                    @ bank.centred(np.array([b]))[0].astype(np.float64)
                )
            else:
                first, second = set(bank.sets[a]), set(bank.sets[b])
                S[i, j] = len(first & second) / len(first | second) if first | second else 0.0
    return S


def loss_by_hand(ecg: np.ndarray, text: np.ndarray, tau: float, alpha: np.ndarray) -> float:
    """L = mean over i of 1/2 (L_i ECG->report + L_i report->ECG), the formula in the module's first lines."""
    total = 0.0
    n = len(ecg)
    for i in range(n):
        own = np.exp(ecg[i] @ text[i] / tau)
        reports = sum(alpha[i, j] * np.exp(ecg[i] @ text[j] / tau) for j in range(n) if j != i)
        ecgs = sum(alpha[j, i] * np.exp(ecg[j] @ text[i] / tau) for j in range(n) if j != i)
        total += 0.5 * (-np.log(own / (own + reports)) - np.log(own / (own + ecgs)))
    return total / n


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("weighting", ["ramp", "exponential", "none"])
@pytest.mark.parametrize("kind", ["embedding", "statements"])
def test_the_loss_is_the_formula(kind: str, weighting: str, drop: bool) -> None:
    values: dict[str, Any] = {
        "similarity": kind,
        "weighting": weighting,
        "drop_duplicates": drop,
        "low": 0.1,
        "high": 0.7,
        "chunk": 3,
    }
    bank, objective = Bank(), make(**values)
    config = objective.config
    generator = torch.Generator().manual_seed(1)
    ecg, text = (
        torch.nn.functional.normalize(torch.randn(8, 5, generator=generator, dtype=torch.float64), dim=-1)
        for _ in range(2)
    )
    alpha = alpha_by_hand(similarity_by_hand(bank, kind), config)
    same_report = np.array(
        [[bank.sets[a] == bank.sets[b] and bank.keys[a] == bank.keys[b] for b in REPORTS] for a in REPORTS]
    )
    counts_by_hand = np.where(same_report | (REPORTS[:, None] == REPORTS[None]), 0.0, alpha) if drop else alpha
    tau = torch.tensor([0.2], dtype=torch.float64)
    features = {"ecg": ecg.requires_grad_(), "text": text.requires_grad_(), "log_scale": -tau.log()}
    loss, metrics, chance = objective.loss(features, objective.report_relations(bank, REPORTS))
    expected = loss_by_hand(ecg.detach().numpy(), text.detach().numpy(), 0.2, counts_by_hand)
    assert loss.item() == pytest.approx(expected, rel=2e-6)
    negatives = (counts_by_hand.sum() - np.trace(counts_by_hand)) / len(REPORTS)
    assert metrics["effective_negatives"].item() == pytest.approx(negatives, rel=1e-5)
    assert chance.loss == pytest.approx(np.log(1 + negatives), rel=1e-5)
    assert metrics["temperature"].item() == pytest.approx(0.2) and metrics["loss"].item() == loss.item()
    loss.backward()
    assert ecg.grad is not None and ecg.grad.abs().max() > 0


def test_without_similarity_and_weights_it_is_plain_infonce() -> None:
    objective = make(similarity="none", weighting="none", drop_duplicates=False)
    inputs = objective.report_relations(Bank(), REPORTS)
    assert "similarity" not in inputs
    ecg, text = (torch.nn.functional.normalize(torch.randn(8, 5, dtype=torch.float64), dim=-1) for _ in range(2))
    loss, _, _ = objective.loss(
        {"ecg": ecg, "text": text, "log_scale": torch.tensor([2.0], dtype=torch.float64)}, inputs
    )
    logits, target = np.exp(2.0) * ecg @ text.T, torch.arange(8)
    plain = (
        torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    torch.testing.assert_close(loss, plain)


def test_statement_columns_mean_the_same_in_every_batch() -> None:
    bank, objective = Bank(), make(similarity="statements")
    parts = [objective.report_relations(bank, part)["similarity"] for part in (REPORTS[:3], REPORTS[3:])]
    torch.testing.assert_close(torch.cat(parts), objective.report_relations(bank, REPORTS)["similarity"])
    assert parts[0].tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 1, 0]]


def test_a_vocabulary_beyond_the_limit_is_folded_not_refused() -> None:
    bank = Bank([[0, STATEMENT_COLUMNS + 5], [5]])
    features = make(similarity="statements").report_relations(bank, np.array([0, 1]))["similarity"]
    assert features.shape == (2, STATEMENT_COLUMNS)
    assert features.nonzero().tolist() == [[0, 0], [0, 5], [1, 5]]


def test_principal_axes_keep_the_similarities_of_low_rank_reports() -> None:
    bank = Bank([[0]] * 40, width=16)
    generator = np.random.default_rng(1)
    bank.embeddings = (generator.normal(size=(40, 3)) @ generator.normal(size=(3, 16))).astype(np.float32)
    bank.keys = np.arange(40)
    everything = np.arange(40)
    axes, kept = principal_axes(bank, everything, 4)
    assert kept == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-5)
    low = make(similarity_dim=4).report_relations(bank, everything)["similarity"].numpy()
    full = bank.centred(everything)
    assert low.shape == (40, 4)
    np.testing.assert_allclose(low @ low.T, full @ full.T, atol=1e-5)


def test_retrieval_counts_an_equal_report_as_found() -> None:
    ecg = torch.eye(4)
    text = torch.eye(4)[[0, 2, 1, 3]]  # ECG 1 finds report 2 and the other way round
    assert retrieval_top1(ecg, text, torch.tensor([1, 2, 3, 4])) == 0.5
    assert retrieval_top1(ecg, text, torch.tensor([1, 2, 2, 4])) == 1.0
    assert retrieval_top1(ecg, text, torch.tensor([1, -1, -1, 4])) == 0.5


def test_methods_are_found_by_name() -> None:
    assert METHODS.find("cardialign") is CardiAlign
    with pytest.raises(UsageError, match="unknown method 'nothing'; known methods: " + ", ".join(METHODS)):
        parse_config({"method": {"name": "nothing"}})
