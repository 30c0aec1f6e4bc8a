"""DiagSim-weighted InfoNCE: negatives whose reports say nearly the same thing count less, or not at all.

For ECG i (and symmetrically for report i), with S_ij the similarity of reports i and j:
    L_i = -log  e^{s_ii} / ( e^{s_ii} + sum_{j != i} alpha(S_ij) e^{s_ij} ),   s_ij = <ecg_i, text_j> / temperature
The mapping alpha and the choice of S are ours (the published description leaves them open): S is the cosine of *centred* frozen report
embeddings, because raw ones sit near 0.83 for any two reports, or the Jaccard overlap of the two sets of statements.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cardialign.kernels.contrastive import Execution, NegativeWeights, Similarity, weighted_infonce
from cardialign.pretrain.config import ObjectiveConfig
from cardialign.pretrain.methods.base import ReportBank

log = logging.getLogger(__name__)

STATEMENT_COLUMNS = 4096
"""Widest multi-hot row. MIMIC-IV-ECG has about 3,800 distinct statements; a larger vocabulary is folded (id modulo this), which only merges statements."""

RETRIEVAL_ROWS = 512
"""Rows of the local batch on which top-1 retrieval is watched: enough for a curve, never a cost."""


class DiagSim:
    """`objective.name = diagsim`. Batch inputs: `similarity` (b, d_s) float32 (absent for similarity none) and `report_key` int64 (b,)."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self.weights = NegativeWeights(config.weighting, config.low, config.high, config.gamma, config.drop_duplicates)
        kinds: dict[str, Literal["cosine", "jaccard", "none"]] = {
            "embedding": "cosine",
            "statements": "jaccard",
            "none": "none",
        }
        self.kind = kinds[config.similarity]
        self._bank: ReportBank | None = None
        self._columns = 0

    def batch_inputs(self, bank: ReportBank, report_ids: np.ndarray) -> dict[str, Tensor]:
        """Report ids (b,) of this rank -> similarity features and duplicate keys. The bank refuses a record without a report (id -1)."""
        self._learn_bank(bank)
        inputs = {"report_key": torch.from_numpy(np.array(bank.report_keys(report_ids), dtype=np.int64))}
        if self.kind == "cosine":
            inputs["similarity"] = torch.from_numpy(self._embedding_features(bank, report_ids))
        elif self.kind == "jaccard":
            inputs["similarity"] = self._statement_features(bank, report_ids)
        return inputs

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the global batch and metrics loss, temperature, effective_negatives, retrieval_top1 (of this rank's records)."""
        similarity = Similarity(self.kind, inputs.get("similarity"), inputs["report_key"])
        ecg, text, log_scale = features["ecg"], features["text"], features["log_scale"]
        output = weighted_infonce(
            ecg,
            text,
            log_scale,
            similarity,
            self.weights,
            Execution(group=group, chunk=self.config.chunk, scheme=self.config.scheme),
        )
        metrics = {
            "loss": output.loss.detach(),
            "temperature": torch.exp(-log_scale.detach()).squeeze(),
            "effective_negatives": output.effective_negatives.detach(),
        }
        if len(ecg):
            metrics["retrieval_top1"] = retrieval_top1(ecg.detach(), text.detach(), inputs["report_key"])
        return output.loss, metrics

    def _learn_bank(self, bank: ReportBank) -> None:
        """What must be the same on every rank is taken from the whole bank, never from a batch; once per bank."""
        if self._bank is bank:
            return
        self._bank, self._columns = bank, 0
        everything = np.arange(len(bank.embeddings), dtype=np.int64)
        if self.kind == "jaccard":
            vocabulary = int(bank.statement_sets(everything)[1].max(initial=0)) + 1
            self._columns = min(vocabulary, STATEMENT_COLUMNS)
            log.info(
                "similarity=statements vocabulary=%d columns=%d folded=%s",
                vocabulary,
                self._columns,
                vocabulary > self._columns,
            )

    def _embedding_features(self, bank: ReportBank, report_ids: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(bank.similarity_features(report_ids, self.config.similarity_dim), dtype=np.float32)

    def _statement_features(self, bank: ReportBank, report_ids: np.ndarray) -> Tensor:
        indptr, ids = bank.statement_sets(report_ids)
        rows = np.repeat(np.arange(len(report_ids)), np.diff(indptr))
        multi_hot = torch.zeros(len(report_ids), self._columns)
        multi_hot[torch.from_numpy(rows), torch.from_numpy(np.asarray(ids, dtype=np.int64) % self._columns)] = 1.0
        return multi_hot


def retrieval_top1(ecg: Tensor, text: Tensor, report_key: Tensor) -> Tensor:
    """Share of ECGs whose nearest report in the local batch is their own or says exactly the same. ecg, text (b, d), report_key (b,) -> 0-dim."""
    rows = min(len(ecg), RETRIEVAL_ROWS)
    nearest = (ecg[:rows] @ text[:rows].T).argmax(dim=1)
    own = nearest == torch.arange(rows, device=nearest.device)
    same_report = (report_key[:rows] == report_key[nearest]) & (report_key[:rows] >= 0)
    return (own | same_report).float().mean()
