"""The stream: shards -> one rank's batches of a run, in the order's sequence, from any step, with a digest of what was
consumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import Order, local_slice
from cardialign.data_shards.order.window import WindowOrder
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.stream.batch import Batch
from cardialign.data_shards.stream.decoder import BatchDecoder, Prefetcher, ReadAhead

__all__ = ["EMPTY_DIGEST", "Position", "ReadAhead", "ShardStream", "chain_digest", "iterate_rows"]

EMPTY_DIGEST = "0" * 32


def chain_digest(digest: str, global_rows: np.ndarray) -> str:
    """blake2b(previous digest || ids of this step), hex: two runs with the same digest have consumed the same records
    in the same order."""
    return hashlib.blake2b(bytes.fromhex(digest) + global_rows.astype("<i8").tobytes(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Position:
    """A place in a run, as a checkpoint keeps it: the next step, and the digest of all steps before it.

    Raises UsageError for no digest of a stream.
    """

    step: int = 0
    digest: str = EMPTY_DIGEST

    def __post_init__(self) -> None:
        if len(bytes.fromhex(self.digest)) != 16:
            raise UsageError(
                f"digest {self.digest!r} is not a stream digest", "give the digest that the checkpoint kept"
            )


class ShardStream:
    """Iterate one rank's batches of a run: steps start.step..stop_step-1 (stop_step None = without end).

    rank, world_size: which slice of each global batch. `.digest` goes on from that of `start` over the global rows of
    every batch handed out, equal on all ranks. Use as a context manager or call `close()`; after that no thread is left
    but one whose read hangs, and that one holds up nothing.

    quarantined: None: a record that cannot be read ends the stream with a DataError naming record, shard, offset and
    rank. A dict (row -> step from which it counts as unreadable, kept by the caller): such records are listed in
    `Batch.bad`, and the caller lets `substitute` put others in their place on every rank. Storage that does not give a
    shard ends the stream either way, with a StorageError that names the shard.
    """

    def __init__(
        self,
        shard_set: ShardSet | JoinedSets,
        order: Order,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: Position | None = None,
        stop_step: int | None = None,
        quarantined: Mapping[int, int] | None = None,
        read_ahead: ReadAhead | None = None,
    ) -> None:
        self._slice = local_slice(order.global_batch, rank, world_size)
        start, read_ahead = start or Position(), read_ahead or ReadAhead()
        self._order = order
        if isinstance(order, WindowOrder) and isinstance(shard_set, ShardSet):
            shard_set.files.max_open = order.open_shards
        self._start, self._stop = start.step, stop_step
        self.digest = self._digest_before = start.digest
        self.next_step = start.step
        self._decoder = BatchDecoder(shard_set, read_ahead, rank, first=self._slice.start, quarantined=quarantined)
        self._batches = Prefetcher(self._decoder, read_ahead.prefetch, self._plan())
        self._closed = False

    @property
    def slow_reads(self) -> int:
        """Reads so far that took longer than the threshold."""
        return self._decoder.watch.count

    def _plan(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        step, prepared = self._start, self._order.part_of(self._start)
        while self._stop is None or step < self._stop:
            global_rows = self._order.batch(step)
            yield step, global_rows[self._slice], global_rows
            part = self._order.part_of(step)
            step += 1
            if part >= prepared:
                # sorting a million rows takes a moment: have the next part's order ready before its first batch, but
                # after this part's first
                prepared = part + 1
                if self._stop is None or prepared <= self._order.part_of(self._stop):
                    self._decoder.pool.submit(self._order.prepare, prepared)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        try:
            batch = self._batches.next()
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        self._digest_before, self.digest = self.digest, chain_digest(self.digest, batch.global_rows)
        self.next_step = batch.step + 1
        return batch

    def substitute(self, batch: Batch, chosen: Mapping[int, int]) -> None:
        """Put other rows into the batch handed out last: position in the global batch -> row, the same on every rank.

        Those of this rank are read; `batch.bad` then lists those of them that could not be read either. The digest is
        that of the new rows.
        """
        assert batch.step == self.next_step - 1, "only the batch handed out last can still change"
        before = batch.rows.copy()
        for position, row in chosen.items():
            batch.global_rows[position] = row
            if self._slice.start <= position < self._slice.stop:
                batch.rows[position - self._slice.start] = row
        self._decoder.refill(batch, np.flatnonzero(batch.rows != before).tolist())
        self.digest = chain_digest(self._digest_before, batch.global_rows)

    def close(self) -> None:
        """Drop what is under way and end the threads; a read that hangs is waited for a few seconds only.

        May be called twice.
        """
        self._closed = True
        self._decoder.close()

    def __enter__(self) -> ShardStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def iterate_rows(shard_set: ShardSet, rows: np.ndarray, batch_size: int, threads: int = 2) -> Iterator[Batch]:
    """The given rows once, in the given order, for evaluation; the last batch may be shorter.

    Threads end with the iteration.

    Raises DataError naming record, shard and offset for a record that cannot be read: an evaluation never puts another
    in its place.
    """
    if batch_size < 1:
        raise UsageError(f"batch size is {batch_size}; it must be at least 1", "set a positive batch size")
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    decoder = BatchDecoder(shard_set, ReadAhead(threads), rank=0)
    chunks = (rows[at : at + batch_size] for at in range(0, rows.size, batch_size))
    batches = Prefetcher(decoder, 2, ((step, chunk, chunk) for step, chunk in enumerate(chunks)))
    try:
        while (batch := batches.next()) is not None:
            yield batch
    finally:
        decoder.close()
