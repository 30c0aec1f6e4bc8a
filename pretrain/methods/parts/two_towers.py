"""What every method of one ECG and its report shares:
an ECG encoder, a text tower, and unit vectors of both in one space.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cardialign.data_shards.record import SignalSpec
from cardialign.data_shards.stream.batch import Batch
from cardialign.pretrain.config import RunConfig, TextConfig
from cardialign.pretrain.methods.base import Method, ReportBank, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.text.tower import TextTower

RETRIEVAL_ROWS = 512
"""Rows of the local batch on which top-1 retrieval is watched: enough for a curve, never a cost."""


def signal_inputs(signal: Tensor, lead_mask: Tensor, valid_samples: Tensor) -> Tensors:
    """Stream batch -> encoder inputs, on the CPU, before the copy to the device.

    `valid_samples` is left out when no record is padded: the encoder then needs no key masks. The decision is made here
    because in `forward` it would wait for the device.
    """
    inputs = {"signal": signal, "lead_mask": lead_mask}
    if int(valid_samples.min()) < signal.shape[-1]:
        inputs["valid_samples"] = valid_samples
    return inputs


def batch_signals(batch: Batch, reads_age: bool = False) -> Tensors:
    """`signal_inputs` of a stream batch, and age float32 (b,) in years where the encoder reads it."""
    signals = signal_inputs(
        torch.from_numpy(batch.signal), torch.from_numpy(batch.lead_mask), torch.from_numpy(batch.valid_samples)
    )
    return {**signals, "age": torch.from_numpy(batch.age_years)} if reads_age else signals


def age_of(inputs: Mapping[str, Tensor]) -> Tensors:
    """What an encoder that reads the age takes beside its signals; nothing for one that does not."""
    return {"age": inputs["age"]} if "age" in inputs else {}


def report_inputs(bank: ReportBank, reports: np.ndarray, config: TextConfig) -> Tensors:
    """Reports (b,) -> text_embedding (b, d) float32 of the frozen encoder,
    or token_ids and token_mask (b, N) for a trained one.
    """
    if config.trainable == "frozen":
        return {"text_embedding": torch.from_numpy(bank.embedding(reports))}
    token_ids, lengths = bank.tokens(reports)
    longest = int(lengths.max(initial=1))
    return {
        "token_ids": torch.from_numpy(np.ascontiguousarray(token_ids[:, :longest])),
        "token_mask": torch.from_numpy(np.arange(longest) < lengths[:, None]),
    }


def report_keys(bank: ReportBank, reports: np.ndarray) -> Tensor:
    """Reports (b,) -> int64 (b,), equal exactly for equal reports."""
    return torch.from_numpy(np.array(bank.report_keys(reports), dtype=np.int64))


class TwoTowers(Method):
    """ECG encoder and text tower. Features: ecg and text float32 (b, embedding_dim), unit vectors."""

    def __init__(self, config: RunConfig, spec: SignalSpec) -> None:
        super().__init__(config, spec)
        self.text_config = config.text
        self.text = TextTower(config.text, config.encoder.embedding_dim)

    def inputs(self, batch: Batch, bank: ReportBank | None, draws: Draws) -> Tensors:
        """signal (b, 12, T) mV, lead_mask bool (b, 12), valid_samples int (b,) unless no record is padded,
        age (b,) in years where the encoder reads it,
        and the report: text_embedding (b, d) from the bank, or token_ids and token_mask (b, N) where the tower trains.
        """
        assert bank is not None
        return {**batch_signals(batch, self.ecg.reads_age), **report_inputs(bank, batch.report, self.text_config)}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensors:
        ecg = self.ecg(inputs["signal"], inputs["lead_mask"], inputs.get("valid_samples"), **age_of(inputs))
        text = self.text(inputs.get("text_embedding"), inputs.get("token_ids"), inputs.get("token_mask"))
        return {"ecg": ecg.embedding, "text": text}


def retrieval_top1(ecg: Tensor, text: Tensor, report_key: Tensor) -> Tensor:
    """Share of ECGs whose nearest report in the local batch is their own or says exactly the same.
    ecg, text (b, d), report_key (b,) -> 0-dim.
    """
    rows = min(len(ecg), RETRIEVAL_ROWS)
    nearest = (ecg[:rows] @ text[:rows].T).argmax(dim=1)
    own = nearest == torch.arange(rows, device=nearest.device)
    same_report = (report_key[:rows] == report_key[nearest]) & (report_key[:rows] >= 0)
    return (own | same_report).float().mean()
