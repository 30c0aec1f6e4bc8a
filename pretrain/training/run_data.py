"""What a run reads: its shard set, the rows it selects, their order, its text bank, and how many steps they make."""

from __future__ import annotations

import math

from data_shards.errors import DataError, UserError
from data_shards.order import GlobalOrder
from data_shards.shard_set import Selection, ShardSet
from data_shards.text_bank import TextBank
from data_shards.window_order import WindowOrder
from pretrain.config import RunConfig
from pretrain.model.text import TextEncoder


def total_steps(config: RunConfig, records: int) -> int:
    """Optimizer steps of the run: as given, or enough for `epochs` passes over `records`."""
    training = config.training
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None
    return max(1, math.ceil(training.epochs * records / training.global_batch))


def open_data(config: RunConfig) -> tuple[ShardSet, Selection, GlobalOrder | WindowOrder]:
    """Shard set, the rows of the run (its folds, with a report), and their order. Raises UserError or DataError with the remedy."""
    if config.data.shards is None:
        raise UserError("data.shards is not set", "name the folder of a shard set: --set data.shards=FOLDER")
    shard_set = ShardSet.open(config.data.shards)
    selection = shard_set.select(folds=config.data.folds, require_report=True)
    patients = shard_set.patients[selection.rows] if config.data.patient_disjoint else None
    batch, seed, window = config.training.global_batch, config.seed, config.data.window
    if window is None:
        return shard_set, selection, GlobalOrder(selection.rows, patients, batch, seed, selection.fingerprint)
    shards = shard_set.shard[selection.rows]
    return shard_set, selection, WindowOrder(selection.rows, shards, patients, batch, seed, selection.fingerprint, window)


def open_bank(config: RunConfig) -> TextBank:
    """Text bank of the shard set for the run's report encoder. Raises UserError when it has not been built."""
    assert config.data.shards is not None
    try:
        return TextBank.open(config.data.shards, TextEncoder(config.text).fingerprint, config.text.style)
    except DataError as error:
        raise UserError(
            f"no text bank of {config.data.shards} for report encoder {config.text.encoder}: {error.problem}",
            f"build it once: cardialign text-bank build {config.data.shards} --encoder {config.text.encoder}",
        ) from None
