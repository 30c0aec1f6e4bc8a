"""Every statement of every report is a yes-or-no question to each ECG, asked through the text head.

    L = mean over records i and statements j of  softplus(l_ij) - y_ij l_ij,   l_ij = e^a ecg_i.words_j + b
y_ij = 1 where the report of record i makes statement j. Scale and bias are learnt. The form is that of SigLIP (Zhai et
al. 2023) with statements in place of reports: a report says several things at once, and what it shares with another one
is then no negative. So a statement, and with it the prompt of a zero-shot evaluation, gets a place of its own.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cardialign.pretrain.config import Strict
from cardialign.pretrain.methods.base import ReportBank


class StatementConfig(Strict):
    """weight: of this loss beside that of whole reports. scale and bias: where e^a and b start.

    most: only the statements that the most reports make are asked for, at most this many; MIMIC-IV-ECG has about 3,800.
    """

    weight: Annotated[float, Field(ge=1e-6, le=1e6)] = 10.0
    scale: Annotated[float, Field(ge=1e-3, le=1e4)] = 10.0
    bias: Annotated[float, Field(ge=-1000, le=1000)] = -3.0
    most: Annotated[int, Field(ge=1, le=2**16)] = 4096


class AskedStatements(NamedTuple):
    """What is asked of every ECG; equal on every rank, because it comes from the whole bank.

    vectors float32 (M, d), frozen; column int64 (statements of the bank,): which of the M a statement is, -1 for none;
    chance: the least loss of a model that answers every ECG alike.
    """

    vectors: Tensor
    column: np.ndarray
    chance: float


def asked_statements(bank: ReportBank, most: int) -> AskedStatements:
    """The statements that the most reports of the bank make. Raises DataError for a bank without their vectors."""
    reports = len(bank.embeddings)
    vectors = bank.statement_vectors()
    said = np.bincount(bank.statement_sets(np.arange(reports))[1], minlength=len(vectors))
    kept = np.sort(np.argsort(-said, kind="stable")[:most])
    column = np.full(len(vectors), -1, dtype=np.int64)
    column[kept] = np.arange(len(kept))
    share = np.clip(said[kept] / max(1, reports), 1e-12, 1 - 1e-12)
    blind = -(share * np.log(share) + (1 - share) * np.log1p(-share)).mean()
    return AskedStatements(torch.from_numpy(np.ascontiguousarray(vectors[kept])), column, float(blind))


def statements_made(bank: ReportBank, reports: np.ndarray, column: np.ndarray, asked: int) -> Tensor:
    """bool (b, M): which of the statements asked for each report (b,) makes."""
    indptr, ids = bank.statement_sets(reports)
    rows, columns = np.repeat(np.arange(len(reports)), np.diff(indptr)), column[ids]
    made = torch.zeros(len(reports), asked, dtype=torch.bool)
    made[torch.from_numpy(rows[columns >= 0]), torch.from_numpy(columns[columns >= 0])] = True
    return made


class StatementLoss(nn.Module):
    """Scale and bias of the answers. Parameters have the shape (1,): DeepSpeed refuses 0-dimensional ones."""

    def __init__(self, config: StatementConfig) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([math.log(config.scale)]))
        self.bias = nn.Parameter(torch.tensor([config.bias]))

    def forward(self, ecg: Tensor, words: Tensor, made: Tensor) -> Tensor:
        """Unit vectors ecg (b, d) and words (M, d), made bool (b, M) -> sum and count of each row, float32 (b, 2)."""
        logits = self.log_scale.float().exp() * (ecg.float() @ words.float().T) + self.bias.float()
        total = F.binary_cross_entropy_with_logits(logits, made.float(), reduction="none").sum(dim=1)
        return torch.stack([total, torch.full_like(total, made.shape[1])], dim=1)
