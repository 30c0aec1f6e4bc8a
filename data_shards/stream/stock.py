"""Our shards for loaders of other people: a decoder for stock `webdataset`, and a map from row to sample for
`torch.utils.data.DataLoader` and whatever else asks for `len` and `[row]`.

Users import both as `from cardialign.webdataset import decode_ecg, EcgSamples`. Samples are dicts of arrays, numbers
and strings, none of them None, so that every loader's own way of making batches takes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.report_text import join_statements
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.signal.codec import decode_counts, decode_header


def decode_ecg(key: str, data: bytes) -> dict[str, Any] | None:
    """What `WebDataset(urls).decode(decode_ecg)` calls for every member: of `.ecg` its signal, of others None.

    millivolts float32 (12, T), lead_mask bool (12,): False = to be masked, never read as 0 mV; valid_samples int: what
    comes behind is padding; sampling_rate in Hz. Raises DataError for a payload that is damaged.
    """
    if key.rpartition(".")[2] != "ecg":
        return None
    header = decode_header(data)
    gain = np.array(header.gain, dtype=np.float32)
    return {
        "millivolts": decode_counts(data).astype(np.float32) / gain[:, None],
        "lead_mask": np.asarray(header.lead_mask),
        "valid_samples": int(header.valid_samples),
        "sampling_rate": float(header.sampling_rate),
    }


class EcgSamples:
    """Samples of a shard set by row, checked against its index as all reads of ours are.

    shards   what `cardialign.open_shards` gives, or its folder or URL
    rows     which of its records, such as `shards.select(folds=[1, 2]).rows`; None: all, in file order

    A sample is what `decode_ecg` gives of its signal, with key, patient (opaque), report (its statements, joined),
    fold, age_years (NaN: not known) and sex ("": not known). May be pickled: workers open the files themselves.
    """

    def __init__(self, shards: ShardSet | Path | str, rows: Sequence[int] | np.ndarray | None = None) -> None:
        self.shards = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
        asked = np.arange(len(self.shards)) if rows is None else np.asarray(rows)
        if asked.ndim != 1 or (asked.size and not np.issubdtype(asked.dtype, np.integer)):
            raise UsageError("EcgSamples: rows are not whole numbers", "give rows from `shards.select(...).rows`")
        if asked.size and not (asked.min() >= 0 and asked.max() < len(self.shards)):
            raise UsageError(
                f"EcgSamples: rows go from {asked.min()} to {asked.max()}, the set has rows 0 to "
                f"{len(self.shards) - 1}",
                "give rows from `shards.select(...).rows`",
            )
        self.rows = asked.astype(np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{len(self)} samples have no sample {index}")
        return _sample(self.shards.read_record(int(self.rows[index])))


def _sample(record: EcgRecord) -> dict[str, Any]:
    return {
        "key": record.key,
        "millivolts": record.millivolts(),
        "lead_mask": record.lead_mask,
        "valid_samples": record.valid_samples,
        "sampling_rate": float(record.sampling_rate),
        "report": join_statements(record.statements),
        "patient": record.patient,
        "fold": record.fold,
        "age_years": math.nan if record.age_years is None else float(record.age_years),
        "sex": record.sex or "",
    }


decode_ecg.__module__ = EcgSamples.__module__ = "cardialign.webdataset"  # what pickles name; this room may move
