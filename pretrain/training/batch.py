"""From a stream batch to what the model and the loss read: lead dropout, report features from the text bank, one copy to the device."""

from __future__ import annotations

import numpy as np
import torch

from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.stream.stream import Batch
from cardialign.data_shards.text.bank import TextBank
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.methods.base import Objective
from cardialign.pretrain.methods.dual import signal_inputs

Tensors = dict[str, torch.Tensor]


def dropped_leads(
    lead_mask: np.ndarray, probability: float, seed: int, step: int, rows: slice, global_batch: int
) -> np.ndarray:
    """Lead mask bool (b, 12) with each present lead hidden with `probability`; a record keeps at least one of those it had.

    The draws are made for the whole global batch and `rows` of it are used, so that they do not depend on how the batch is spread over ranks.
    """
    if probability == 0:
        return lead_mask
    draws = np.random.default_rng([seed & 0xFFFF_FFFF, step, 12]).random((global_batch, lead_mask.shape[1]))[rows]
    kept = lead_mask & (draws >= probability)
    emptied = ~kept.any(axis=1) & lead_mask.any(axis=1)
    kept[emptied, np.where(lead_mask, draws, -1.0).argmax(axis=1)[emptied]] = True
    return kept


def text_inputs(bank: TextBank, report: np.ndarray, config: RunConfig) -> Tensors:
    """Reports (b,) -> text_embedding (b, d) float32 of the frozen encoder, or token_ids and token_mask (b, N) for a trained one."""
    if config.text.trainable == "frozen":
        return {"text_embedding": torch.from_numpy(bank.embedding(report))}
    token_ids, lengths = bank.tokens(report)
    longest = int(lengths.max(initial=1))
    return {
        "token_ids": torch.from_numpy(np.ascontiguousarray(token_ids[:, :longest])),
        "token_mask": torch.from_numpy(np.arange(longest) < lengths[:, None]),
    }


def step_inputs(
    batch: Batch,
    bank: TextBank,
    objective: Objective,
    config: RunConfig,
    rank: int,
    world_size: int,
    device: torch.device,
) -> tuple[Tensors, Tensors]:
    """Stream batch of this rank -> (model inputs, loss inputs), on the device."""
    training = config.training
    rows = local_slice(training.global_batch, rank, world_size)
    lead_mask = dropped_leads(
        batch.lead_mask, training.lead_dropout, config.seed, batch.step, rows, training.global_batch
    )
    model = signal_inputs(
        torch.from_numpy(batch.signal), torch.from_numpy(lead_mask), torch.from_numpy(batch.valid_samples)
    )
    model |= text_inputs(bank, batch.report, config)
    loss = objective.batch_inputs(bank, batch.report)

    def to_device(tensors: Tensors) -> Tensors:
        return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

    return to_device(model), to_device(loss)
