"""What the training loop asks of a method. A new one is a class with these two calls in a file of this folder, and a line in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch.distributed as dist
from torch import Tensor


class ReportBank(Protocol):
    """The part of `cardialign.data_shards.text.bank.TextBank` that objectives read; report ids are rows of the shard set's reports table."""

    embeddings: np.ndarray

    def similarity_features(self, report_ids: np.ndarray, dim: int | None = None) -> np.ndarray:
        """float32 (b, d) or (b, dim) unit rows whose products are the centred cosines, or their low-rank approximation."""
        ...

    def statement_sets(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...

    def report_keys(self, report_ids: np.ndarray) -> np.ndarray:
        """int64 (b,), never negative, equal exactly for equal reports."""
        ...


class Objective(Protocol):
    """One pretraining loss over the global batch."""

    def batch_inputs(self, bank: ReportBank, report_ids: np.ndarray) -> dict[str, Tensor]:
        """What the loss needs to know of this rank's b reports (CPU tensors with b rows, meaning the same on every rank)."""

    def loss(
        self, features: Mapping[str, Tensor], inputs: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """features: ecg, text (b, d), log_scale (1,) of this rank; returns the loss of the global batch (0-dim, equal on every rank) and
        detached 0-dim metrics. Called once a step with all of the rank's features (gradient caching feeds the gradients back)."""
