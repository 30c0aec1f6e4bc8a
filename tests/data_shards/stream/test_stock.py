"""Loaders of other people read our shards: stock `webdataset`, and torch's own by row; each sample is our record."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch.utils.data
import webdataset

from cardialign.data_shards.errors import DataError, UserError
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.webdataset import EcgSamples, decode_ecg


def test_stock_webdataset_decodes_every_record_to_millivolts(small_set: ShardSet) -> None:
    urls = [str(small_set.path / name) for name in small_set.shard_names]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode(decode_ecg))
    assert len(samples) == len(small_set)
    for row, sample in enumerate(samples):
        record, signal = small_set.read_record(row), sample["ecg"]
        assert (sample["__key__"], sample["json"]["patient"]) == (record.key, record.patient)
        assert signal["millivolts"].dtype == np.float32 and signal["sampling_rate"] == 500
        np.testing.assert_array_equal(signal["millivolts"], record.millivolts())
        np.testing.assert_array_equal(signal["lead_mask"], record.lead_mask)
        assert signal["valid_samples"] == record.valid_samples


def test_a_damaged_payload_is_not_decoded(small_set: ShardSet) -> None:
    payload = bytearray(small_set.read_payload(0))
    payload[-1] ^= 1
    with pytest.raises(DataError):
        decode_ecg(".ecg", bytes(payload))
    assert decode_ecg(".json", bytes(payload)) is None, "not ours: the next decoder's"


def test_batches_of_a_torch_loader_hold_the_rows_that_were_asked_for(small_set: ShardSet) -> None:
    rows = small_set.select(folds=[1, 2, 3]).rows
    samples = EcgSamples(small_set, rows)
    (batch,) = torch.utils.data.DataLoader(samples, batch_size=len(rows))
    records = [small_set.read_record(int(row)) for row in rows]
    assert batch["key"] == [record.key for record in records] and 1 < len(samples) < len(small_set)
    assert batch["millivolts"].shape == (len(rows), 12, 500) and batch["lead_mask"].dtype == torch.bool
    np.testing.assert_array_equal(batch["millivolts"], np.stack([record.millivolts() for record in records]))
    ages = [math.nan if record.age_years is None else record.age_years for record in records]
    np.testing.assert_array_equal(batch["age_years"], ages)
    assert batch["report"][0].startswith(records[0].statements[0])


def test_what_a_worker_process_is_given_reads_the_same(small_set: ShardSet) -> None:
    samples = EcgSamples(small_set.path)
    again = pickle.loads(pickle.dumps(samples))
    assert len(again) == len(small_set) and again[-1]["key"] == small_set.read_record(-1).key
    assert pickle.loads(pickle.dumps(decode_ecg)) is decode_ecg
    assert [each["key"] for each in samples] == small_set.index.column("key").to_pylist(), "a plain loop ends, too"


@pytest.mark.parametrize(("rows", "told"), [([90], "the set has rows 0 to"), ([-1], "-1"), (["a"], "whole numbers")])
def test_rows_that_the_set_has_not_are_named(small_set: ShardSet, rows: list[object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        EcgSamples(small_set, rows)  # type: ignore[arg-type]
