"""Signals and reports made of noise, in the shapes that a method reads: for what is timed, or counted, without data."""

from __future__ import annotations

import numpy as np
import torch

from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.text.encoder import TextEncoder


def noise_batch(config: RunConfig, spec: SignalSpec, records: int) -> Batch:
    """Noise of ECG size with all leads, from as many patients as records."""
    generator = torch.Generator().manual_seed(config.seed)
    rows = np.arange(records)
    return Batch(
        step=0,
        rows=rows,
        signal=(0.3 * torch.randn(records, 12, spec.samples, generator=generator)).numpy(),
        lead_mask=np.ones((records, 12), dtype=bool),
        valid_samples=np.full(records, spec.samples, dtype=np.int32),
        report=rows,
        age_years=np.full(records, np.nan, dtype=np.float32),
        sex=np.zeros(records, dtype=np.int8),
        global_rows=rows,
        patient=rows,
    )


STATEMENTS, STATEMENTS_OF_ONE = 256, 5
"""Statements of the bank, and of each report."""


class NoiseBank:
    """As many reports as records, no two of them equal: random embeddings, tokens and statements (a `ReportBank`).

    A report is the same whenever it is asked for: a method may measure the bank before it reads a batch of it.
    """

    def __init__(self, config: RunConfig, records: int) -> None:
        self.text = TextEncoder(config.text)
        self.generator = np.random.default_rng(config.seed)
        rows = self.generator.standard_normal((records, self.text.dim)).astype(np.float32)
        self.embeddings = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        words = int(self.text.model_config["vocab_size"])
        self.words = self.generator.integers(words, size=(records, self.text.max_tokens), dtype=np.int32)
        self.statements = self.generator.integers(STATEMENTS, size=(records, STATEMENTS_OF_ONE))
        rows = self.generator.standard_normal((STATEMENTS, self.text.dim)).astype(np.float32)
        self.vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embedding(self, report_ids: np.ndarray) -> np.ndarray:
        return self.embeddings[report_ids]

    def tokens(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.words[report_ids], np.full(len(report_ids), self.text.max_tokens, dtype=np.int32)

    def similarity_features(self, report_ids: np.ndarray, dim: int | None = None) -> np.ndarray:
        rows = self.embeddings[report_ids, :dim]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def statement_sets(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(report_ids) + 1) * STATEMENTS_OF_ONE, self.statements[report_ids].reshape(-1)

    def statement_vectors(self) -> np.ndarray:
        return self.vectors

    def distant(self, k: int) -> np.ndarray:
        """The k reports behind each, in a circle."""
        reports = len(self.embeddings)
        return (np.arange(reports)[:, None] + 1 + np.arange(min(k, reports - 1))).astype(np.int32) % reports

    def report_keys(self, report_ids: np.ndarray) -> np.ndarray:
        return report_ids.astype(np.int64)
