"""The stream hands out exactly the order's records in mV, on any world, from any step, and says where a damaged record
lies."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from cardialign.data_shards.errors import DataError, StorageError, UsageError
from cardialign.data_shards.order.global_order import GlobalOrder
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.stream import (
    EMPTY_DIGEST,
    Batch,
    Position,
    ReadAhead,
    ShardStream,
    chain_digest,
    iterate_rows,
)


def order_of(shards: ShardSet, batch: int = 10, seed: int = 1) -> GlobalOrder:
    chosen = shards.select()
    return GlobalOrder(chosen.rows, shards.patients[chosen.rows], batch, seed, chosen.fingerprint)


def stream_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shard-stream")]


def content(batch: Batch) -> tuple:
    arrays = (
        batch.rows,
        batch.signal,
        batch.lead_mask,
        batch.valid_samples,
        batch.report,
        batch.age_years,
        batch.sex,
        batch.global_rows,
    )
    return batch.step, *(array.tobytes() for array in arrays)


def test_a_batch_holds_the_records_of_its_rows_in_millivolts(small_set: ShardSet) -> None:
    with ShardStream(small_set, order_of(small_set), stop_step=3) as stream:
        batches = list(stream)
    assert [batch.step for batch in batches] == [0, 1, 2]
    for batch in batches:
        assert batch.signal.dtype == np.float32 and batch.signal.shape == (10, 12, 500)
        for i, row in enumerate(batch.rows):
            record = small_set.read_record(int(row))
            np.testing.assert_array_equal(batch.signal[i], record.millivolts())
            np.testing.assert_array_equal(batch.lead_mask[i], record.lead_mask)
            assert batch.valid_samples[i] == record.valid_samples
            assert (batch.report[i] >= 0) == bool(record.statements)
            assert ("", "female", "male")[batch.sex[i]] == (record.sex or "")
            assert (
                np.isnan(batch.age_years[i])
                if record.age_years is None
                else batch.age_years[i] == np.float32(record.age_years)
            )


@pytest.mark.parametrize("world", [1, 2, 3, 12])
def test_every_world_reads_the_same_global_batches_and_has_the_same_digest(small_set: ShardSet, world: int) -> None:
    order = order_of(small_set)
    with ShardStream(small_set, order, stop_step=9) as alone:
        whole = list(alone)
    ranks = []
    for rank in range(world):
        with ShardStream(
            small_set, order_of(small_set), rank=rank, world_size=world, stop_step=9, read_ahead=ReadAhead(threads=1)
        ) as stream:
            ranks.append(list(stream))
            assert stream.digest == alone.digest
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([batches[step].signal for batches in ranks]), batch.signal)
        np.testing.assert_array_equal(np.concatenate([batches[step].rows for batches in ranks]), batch.global_rows)


def test_threads_and_prefetch_do_not_change_the_content(small_set: ShardSet) -> None:
    traces = []
    for threads, prefetch in ((1, 1), (4, 1), (3, 8)):
        with ShardStream(
            small_set, order_of(small_set, 80), stop_step=4, read_ahead=ReadAhead(threads=threads, prefetch=prefetch)
        ) as stream:
            traces.append([content(batch) for batch in stream])
    assert traces[0] == traces[1] == traces[2]


def test_resuming_goes_on_with_the_same_batches_and_digest(small_set: ShardSet) -> None:
    order = order_of(small_set)
    with ShardStream(small_set, order, stop_step=20) as stream:
        undisturbed = [content(batch) for batch in stream]
    with ShardStream(small_set, order, stop_step=None) as first:
        head = [content(next(first)) for _ in range(7)]
        assert first.next_step == 7
    with ShardStream(
        small_set, order_of(small_set), stop_step=20, start=Position(first.next_step, first.digest)
    ) as second:
        tail = [content(batch) for batch in second]
    assert head + tail == undisturbed
    assert second.digest == stream.digest != EMPTY_DIGEST


def test_the_digest_is_the_stated_chain(small_set: ShardSet) -> None:
    order = order_of(small_set)
    digest = EMPTY_DIGEST
    for step in range(3):
        digest = chain_digest(digest, order.batch(step))
    with ShardStream(small_set, order, stop_step=3) as stream:
        list(stream)
    assert stream.digest == digest
    with pytest.raises(UsageError, match="not a stream digest"):
        ShardStream(small_set, order, start=Position(digest="00"))


def test_no_thread_outlives_the_stream(small_set: ShardSet) -> None:
    stream = ShardStream(small_set, order_of(small_set), read_ahead=ReadAhead(threads=3))
    next(stream)
    assert stream_threads()
    stream.close()
    stream.close()
    assert stream_threads() == []
    assert list(stream) == []
    for _ in iterate_rows(small_set, np.arange(30), 4):
        break
    assert stream_threads() == []


def test_waiting_is_accounted_for(small_set: ShardSet) -> None:
    with ShardStream(small_set, order_of(small_set), stop_step=2) as stream:
        for batch in stream:
            assert batch.wait.keys() == {"read", "decode", "queue"}
            assert batch.wait["read"] > 0 and batch.wait["decode"] > 0 and batch.wait["queue"] >= 0


def test_a_batch_that_is_still_held_is_never_written_again(small_set: ShardSet) -> None:
    with ShardStream(
        small_set, order_of(small_set), stop_step=30, read_ahead=ReadAhead(threads=1, prefetch=1)
    ) as stream:
        held = next(stream)
        view = next(stream).signal[3]  # a view holds its buffer, too
        before, row = held.signal.copy(), view.copy()
        assert sum(1 for _ in stream) == 28
    np.testing.assert_array_equal(held.signal, before)
    np.testing.assert_array_equal(view, row)


def flip(folder: Path, shards: ShardSet, row: int, at: int = 60) -> None:
    file = folder / shards.shard_names[shards.shard[row]]
    content = bytearray(file.read_bytes())
    content[int(shards.offset[row]) + at] ^= 1
    file.write_bytes(content)


def test_a_flipped_byte_surfaces_in_the_consumer_with_its_place(set_copy: Path) -> None:
    shards = ShardSet.open(set_copy)
    row = 50
    flip(set_copy, shards, row)
    with ShardStream(shards, order_of(shards), rank=1, world_size=2, stop_step=30) as stream:
        with pytest.raises(DataError) as caught:
            list(stream)
    for part in (
        f"record {shards.key(row)}",
        "shard-000001.tar",
        f"offset {shards.offset[row]}",
        "rank 1",
        "crc32",
        "cardialign shards verify",
    ):
        assert part in str(caught.value)
    assert stream_threads() == []


def test_a_truncated_and_a_missing_shard_surface_too(set_copy: Path) -> None:
    shards = ShardSet.open(set_copy)
    last = set_copy / "shard-000002.tar"
    with last.open("r+b") as file:
        file.truncate(last.stat().st_size // 2)
    with pytest.raises(StorageError, match=r"shard-000002.tar of .* ends early: it has 56320 bytes, the manifest says"):
        list(iterate_rows(shards, np.arange(len(shards)), 16))
    last.unlink()
    with pytest.raises(StorageError, match=r"shard-000002.tar of .* is missing"):
        list(iterate_rows(ShardSet.open(set_copy), np.arange(len(shards)), 16))


def test_evaluation_reads_the_rows_once_in_their_order(small_set: ShardSet) -> None:
    rows = np.array([5, 3, 80, 3, 0, 44, 21])
    batches = list(iterate_rows(small_set, rows, 3, threads=2))
    assert [batch.rows.size for batch in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in batches]), rows)
    np.testing.assert_array_equal(batches[2].signal[0], small_set.read_record(21).millivolts())
    with pytest.raises(UsageError, match="batch size is 0"):
        next(iterate_rows(small_set, rows, 0))
