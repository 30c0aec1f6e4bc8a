"""CardiAlign, the main recipe: an ECG finds its report; what other reports say nearly alike counts less, or not at all.

DiagSim-weighted InfoNCE.

For ECG i (and symmetrically for report i), with S_ij the similarity of reports i and j:
    L_i = -log  e^{s_ii} / ( e^{s_ii} + sum_{j != i} alpha(S_ij) e^{s_ij} ),   s_ij = <ecg_i, text_j> / temperature
The mapping alpha and the choice of S are ours (the published description leaves them open): S is the cosine of
*centred* frozen report embeddings, because raw ones sit near 0.83 for any two reports, or the Jaccard overlap of the
two sets of statements. Beside it, where the recipe says so, every single statement is asked of every ECG
(`parts.statements`), and ECGs are seen in random views (`parts.views`).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.kernels.contrastive import Execution, NegativeWeights, Similarity, weighted_infonce
from cardialign.pretrain.config import MethodConfig, Positive, RunConfig, Temperature, Width, refuse
from cardialign.pretrain.methods.base import Chance, ReportBank, StepLoss, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.methods.parts.logit_scale import LogitScale
from cardialign.pretrain.methods.parts.row_losses import mean_over_batch
from cardialign.pretrain.methods.parts.statements import (
    AskedStatements,
    StatementConfig,
    StatementLoss,
    asked_statements,
    statements_made,
)
from cardialign.pretrain.methods.parts.two_towers import TwoTowers, report_keys, retrieval_top1
from cardialign.pretrain.methods.parts.views import ViewConfig, draw_view

log = logging.getLogger(__name__)

STATEMENT_COLUMNS = 4096
"""Widest multi-hot row.

MIMIC-IV-ECG has about 3,800 distinct statements; a larger vocabulary is folded (id modulo this), which only merges
statements.
"""


Cosine = Annotated[float, Field(ge=-10, le=10)]
"""A threshold of similarities, which lie within -1..1; further out a ramp never reaches its end."""
LEAST_RAMP = 1e-3
"""From full to gone: float32 holds no steeper ramp."""


class CardiAlignConfig(MethodConfig):
    """S from report similarity, negatives weighted by alpha(S), a learnable clamped temperature.

    statements: the loss of single statements beside it; null: none.
    view: how far the ECG that is trained on may go from the record; null: the record itself.
    """

    harmless: ClassVar[tuple[str, ...]] = ("chunk",)

    name: str = "cardialign"
    similarity: Literal["embedding", "statements", "none"] = "embedding"
    weighting: Literal["ramp", "exponential", "none"] = "ramp"
    low: Cosine = 0.3
    high: Cosine = 0.8
    gamma: Annotated[float, Field(ge=1e-6, le=1e4)] = 4.0
    drop_duplicates: bool = True
    similarity_dim: Width | None = None
    temperature: Temperature = 0.07
    temperature_min: Temperature = 0.01
    temperature_max: Temperature = 1.0
    learn_temperature: bool = True
    statements: StatementConfig | None = None
    view: ViewConfig | None = None
    chunk: Positive = 1024
    scheme: Literal["auto", "gather", "ring"] = "auto"

    @property
    def statement_vectors(self) -> bool:
        return self.statements is not None

    @model_validator(mode="after")
    def _ordered(self) -> CardiAlignConfig:
        problems = []
        if self.high - self.low < LEAST_RAMP:
            problems.append(
                f"low {self.low:g} is not below high {self.high:g} by {LEAST_RAMP:g}; negatives are full below low and "
                "gone above high"
            )
        if not self.temperature_min <= self.temperature <= self.temperature_max:
            problems.append(
                f"temperature {self.temperature:g} is outside temperature_min..temperature_max "
                f"({self.temperature_min:g}..{self.temperature_max:g}); "
                "move it inside or widen the bounds"
            )
        refuse(problems)
        return self


class CardiAlign(TwoTowers):
    """`method.name: cardialign`.

    Inputs besides both towers': report_key int64 (b,), unless similarity is none similarity float32 (b, d_s), and with
    the loss of statements made bool (b, M).
    Raises UsageError for that loss with a report encoder that trains: the vectors of the statements would grow old.
    """

    Config: ClassVar[type[MethodConfig]] = CardiAlignConfig

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        method = config.method
        assert isinstance(method, CardiAlignConfig)
        self.config = method
        self.logit_scale = LogitScale(
            method.temperature, method.temperature_min, method.temperature_max, method.learn_temperature
        )
        self.negatives = NegativeWeights(
            method.weighting, method.low, method.high, method.gamma, method.drop_duplicates
        )
        kinds: dict[str, Literal["cosine", "jaccard", "none"]]
        kinds = {"embedding": "cosine", "statements": "jaccard", "none": "none"}
        self.kind = kinds[method.similarity]
        self._bank: ReportBank | None = None
        self._columns = 0
        self._asked: AskedStatements | None = None
        self.sampling_rate = spec.sampling_rate
        if method.statements is not None:
            if config.text.trainable != "frozen":
                raise UsageError(
                    f"method.statements asks for a frozen report encoder, text.trainable is {config.text.trainable}",
                    "set text.trainable to frozen, or method.statements to null",
                )
            self.statements = StatementLoss(method.statements)

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        assert bank is not None
        if self.config.view is not None:
            signal, leads, valid = draw_view(batch, self.config.view, draws, "view", self.sampling_rate)
            batch = dataclasses.replace(batch, signal=signal, lead_mask=leads, valid_samples=valid)
        inputs = {**super().inputs(batch, bank, draws), **self.report_relations(bank, batch.report)}
        if self._asked is not None:
            asked = self._asked
            inputs["made"] = statements_made(bank, batch.report, asked.column, len(asked.vectors))
        return inputs

    def report_relations(self, bank: ReportBank, reports: np.ndarray) -> Tensors:
        """Report ids (b,) -> duplicate keys and similarity features.

        The bank refuses a record without a report (id -1).
        """
        self._learn_bank(bank)
        inputs = {"report_key": report_keys(bank, reports)}
        if self.kind == "cosine":
            inputs["similarity"] = torch.from_numpy(self._embedding_features(bank, reports))
        elif self.kind == "jaccard":
            inputs["similarity"] = self._statement_features(bank, reports)
        return inputs

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """Features ecg and text (b, embedding_dim), log_scale (1,), and statements (b, 2): sum and count."""
        features = {**super().forward(inputs), "log_scale": self.logit_scale()}
        if self._asked is not None:
            words = self.text.head(self._asked.vectors.to(features["ecg"].device, non_blocking=True))
            features["statements"] = self.statements(features["ecg"], words, inputs["made"])
        return features

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> StepLoss:
        """Metrics: loss, temperature, effective_negatives (a mean per ECG), retrieval_top1 (of this rank's records)."""
        similarity = Similarity(self.kind, inputs.get("similarity"), inputs["report_key"])
        ecg, text, log_scale = features["ecg"], features["text"], features["log_scale"]
        output = weighted_infonce(
            ecg,
            text,
            log_scale,
            similarity,
            self.negatives,
            Execution(group=group, chunk=self.config.chunk, scheme=self.config.scheme),
        )
        metrics = {
            "loss": output.loss.detach(),
            "temperature": torch.exp(-log_scale.detach()).squeeze(),
            "effective_negatives": output.effective_negatives.detach(),
        }
        if len(ecg):
            metrics["retrieval_top1"] = retrieval_top1(ecg.detach(), text.detach(), inputs["report_key"])
        chance = Chance(math.log1p(float(output.effective_negatives)), "ln(1 + effective negatives)")
        if self._asked is None or self.config.statements is None:
            return StepLoss(output.loss, metrics, chance)
        statements, weight = mean_over_batch(features["statements"], group), self.config.statements.weight
        metrics |= {"report_loss": output.loss.detach(), "statement_loss": statements.detach()}
        blind = chance.loss + weight * self._asked.chance
        chance = Chance(blind, f"{chance.formula} + {weight:g} x the entropy of a statement")
        loss = output.loss + weight * statements
        return StepLoss(loss, metrics | {"loss": loss.detach()}, chance)

    def _learn_bank(self, bank: ReportBank) -> None:
        """What must be the same on every rank is taken from the whole bank, never from a batch; once per bank."""
        if self._bank is bank:
            return
        self._bank, self._columns = bank, 0
        everything = np.arange(len(bank.embeddings), dtype=np.int64)
        if self.config.statements is not None:
            self._asked = asked_statements(bank, self.config.statements.most)
            log.info("statements asked=%d blind_loss=%.4f", len(self._asked.vectors), self._asked.chance)
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
