"""From a stream batch to what the method reads: hidden leads, the method's own inputs, one copy to the device."""

from __future__ import annotations

import dataclasses

import numpy as np

from cardialign.data_shards.order.contract import local_slice
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.batch import Batch
from cardialign.data_shards.text.bank import TextBank
from cardialign.pretrain.config import RunConfig
from cardialign.pretrain.config.training import LeadMaskingConfig
from cardialign.pretrain.methods.base import Method, Tensors
from cardialign.pretrain.methods.parts.draws import Draws
from cardialign.pretrain.training.engine import Workers


def dropped_leads(
    lead_mask: np.ndarray, probability: float, seed: int, step: int, rows: slice, global_batch: int
) -> np.ndarray:
    """Lead mask bool (b, 12) with each present lead hidden with `probability`;
    a record keeps at least one of those it had.

    The draws are made for the whole global batch and `rows` of it are used, so that they do not depend on how the batch
    is spread over ranks.
    """
    if probability == 0:
        return lead_mask
    draws = np.random.default_rng([seed & 0xFFFF_FFFF, step, 12]).random((global_batch, lead_mask.shape[1]))[rows]
    kept = lead_mask & (draws >= probability)
    emptied = ~kept.any(axis=1) & lead_mask.any(axis=1)
    kept[emptied, np.where(lead_mask, draws, -1.0).argmax(axis=1)[emptied]] = True
    return kept


def masked_leads(lead_mask: np.ndarray, masking: LeadMaskingConfig | None, draws: Draws) -> np.ndarray:
    """Lead mask bool (b, 12) with 0 to `most` of the present leads hidden of a share of the records, at random.

    A record keeps at least one of those it had. (seed, step, row of the global batch) decides it, no topology does.
    """
    if masking is None:
        return lead_mask
    leads = lead_mask.shape[1]
    drawn = draws.uniform("lead masking", leads + 2)
    count = np.where(drawn[:, 0] < masking.share, np.floor(drawn[:, 1] * (masking.most + 1)), 0)
    count = np.minimum(count, lead_mask.sum(axis=1) - 1)
    order = np.where(lead_mask, drawn[:, 2:], 1.0).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return lead_mask & (order >= count[:, None])


def step_inputs(
    batch: Batch,
    shard_set: ShardSet | JoinedSets,
    bank: TextBank | None,
    method: Method,
    config: RunConfig,
    workers: Workers,
) -> Tensors:
    """Stream batch of this rank -> the method's inputs, on the device.
    shard_set: says the report and the patient of every record.
    """
    training = config.training
    rows = local_slice(training.global_batch, workers.rank, workers.world_size)
    shown = dropped_leads(batch.lead_mask, training.lead_dropout, config.seed, batch.step, rows, training.global_batch)
    draws = Draws(config.seed, batch.step, rows)
    shown = masked_leads(shown, training.lead_masking, draws)
    batch = dataclasses.replace(
        batch,
        lead_mask=shown,
        global_report=shard_set.report[batch.global_rows].astype(np.int64),
        patient=shard_set.patients[batch.rows].astype(np.int64),
    )
    inputs = method.inputs(batch, bank, draws)
    return {name: tensor.to(workers.device, non_blocking=True) for name, tensor in inputs.items()}
