"""The stream: shards -> float batches in mV, decoded in background threads, every payload checked, the same content whatever the threads.

pcodec holds the interpreter lock while it decodes, so threads overlap decoding with the training step (which releases it), not with each other;
a rank that outruns one core of decoding belongs on more ranks.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from data_shards.codec import decode_into
from data_shards.errors import DataError, UsageError
from data_shards.order import GlobalOrder, local_slice
from data_shards.shard_files import REMEDY
from data_shards.shard_set import ShardSet

EMPTY_DIGEST = "0" * 32
_CHUNK = 32  # records per background task: small enough to share a batch among threads, large enough to make the hand-over cheap


def _no_wait() -> dict[str, float]:
    return {"read": 0.0, "decode": 0.0, "queue": 0.0}


@dataclass
class Batch:
    """One rank's share of a global batch.

    rows int64 (b,); signal float32 (b, 12, T) in mV; lead_mask bool (b, 12); valid_samples int32 (b,); report int64 (b,), -1 none;
    age_years float32 (b,), NaN unknown; sex int8 (b,), 0 unknown 1 female 2 male; global_rows int64 (B,), the rows of all ranks;
    wait: seconds spent on this batch, read and decode in the background, queue = how long the consumer stood still for it.
    """

    step: int
    rows: np.ndarray
    signal: np.ndarray
    lead_mask: np.ndarray
    valid_samples: np.ndarray
    report: np.ndarray
    age_years: np.ndarray
    sex: np.ndarray
    global_rows: np.ndarray
    wait: dict[str, float] = field(default_factory=_no_wait)


def chain_digest(digest: str, global_rows: np.ndarray) -> str:
    """blake2b(previous digest || ids of this step), hex: two runs with the same digest have consumed the same records in the same order."""
    return hashlib.blake2b(bytes.fromhex(digest) + global_rows.astype("<i8").tobytes(), digest_size=16).hexdigest()


class _Decoder:
    """Turns rows into batches in a pool of threads. Keeps nothing but the pool; batches under way belong to the caller."""

    def __init__(self, shards: ShardSet, threads: int, rank: int) -> None:
        if threads < 1:
            raise UsageError(f"threads is {threads}; at least 1 is needed", "set threads to 1 or more")
        self._shards, self._rank = shards, rank
        self._shape = (12, shards.spec.samples)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="shard-stream")

    def start(self, step: int, rows: np.ndarray, global_rows: np.ndarray) -> tuple[Batch, list[Future[tuple[float, float]]]]:
        shards = self._shards
        batch = Batch(
            step=step,
            rows=rows,
            signal=np.empty((rows.size, *self._shape), dtype=np.float32),
            lead_mask=shards.lead_masks(rows),
            valid_samples=np.empty(rows.size, dtype=np.int32),
            report=shards.report[rows],
            age_years=shards.age_years[rows],
            sex=shards.sex[rows],
            global_rows=global_rows,
        )
        return batch, [self.pool.submit(self._fill, batch, at, min(at + _CHUNK, rows.size)) for at in range(0, rows.size, _CHUNK)]

    def _fill(self, batch: Batch, start: int, end: int) -> tuple[float, float]:
        """Read and decode rows start..end of a batch in place. Returns seconds of reading (and checking) and of decoding."""
        read = decode = 0.0
        now = time.perf_counter()
        for i in range(start, end):
            row = int(batch.rows[i])
            try:
                payload = self._shards.read_payload(row)
                then, now = now, time.perf_counter()
                read += now - then
                # the crc32 of the index covers the payload's own checksum
                batch.valid_samples[i] = decode_into(payload, batch.signal[i], verified=True).valid_samples
                then, now = now, time.perf_counter()
                decode += now - then
            except DataError as error:
                raise self._located(error, row) from error
        return read, decode

    def _located(self, error: DataError, row: int) -> DataError:
        shards = self._shards
        shard = shards.shard_names[shards.shard[row]]
        where = f"record {shards.key(row)}, shard {shard}, offset {shards.offset[row]}, rank {self._rank}"
        return DataError(f"{where}: {error.problem}", error.remedy if "shards verify" in error.remedy else REMEDY)


class _Prefetcher:
    """Keeps up to `prefetch` batches under way and hands them out in order."""

    def __init__(self, decoder: _Decoder, prefetch: int, plan: Iterator[tuple[int, np.ndarray, np.ndarray]]) -> None:
        self._decoder, self._prefetch, self._plan = decoder, max(1, prefetch), plan
        self._under_way: deque[tuple[Batch, list[Future[tuple[float, float]]]]] = deque()

    def next(self) -> Batch | None:
        started = time.perf_counter()
        self._top_up()
        if not self._under_way:
            return None
        batch, parts = self._under_way.popleft()
        self._top_up()
        for part in parts:
            read, decode = part.result()
            batch.wait["read"] += read
            batch.wait["decode"] += decode
        batch.wait["queue"] = time.perf_counter() - started
        return batch

    def _top_up(self) -> None:
        while len(self._under_way) < self._prefetch:
            planned = next(self._plan, None)
            if planned is None:
                return
            self._under_way.append(self._decoder.start(*planned))


class ShardStream:
    """Iterate one rank's batches of a run: steps start_step..stop_step-1 (stop_step None = without end).

    rank, world_size: which slice of each global batch. threads decode in the background, `prefetch` batches ahead. digest: the digest of the steps
    before start_step, as a checkpoint kept it; `.digest` goes on from there over the global rows of every batch handed out, equal on all ranks.
    Use as a context manager or call `close()`; after that no thread is left. A record that cannot be read ends the stream with a DataError naming
    record, shard, offset and rank.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        order: GlobalOrder,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        stop_step: int | None = None,
        threads: int = 2,
        prefetch: int = 4,
        digest: str = EMPTY_DIGEST,
    ) -> None:
        self._slice = local_slice(order.global_batch, rank, world_size)
        if len(bytes.fromhex(digest)) != 16:
            raise UsageError(f"digest {digest!r} is not a stream digest", "give the digest that the checkpoint kept")
        self._order = order
        self._start, self._stop = start_step, stop_step
        self.digest = digest
        self.next_step = start_step
        self._decoder = _Decoder(shard_set, threads, rank)
        self._batches = _Prefetcher(self._decoder, prefetch, self._plan())
        self._closed = False

    def _plan(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        step, prepared = self._start, self._order.epoch_of(self._start)
        while self._stop is None or step < self._stop:
            global_rows = self._order.batch(step)
            yield step, global_rows[self._slice], global_rows
            epoch = self._order.epoch_of(step)
            step += 1
            if epoch >= prepared:
                # sorting a million rows takes a moment: have the next epoch's order ready before its first batch, but after this epoch's first
                prepared = epoch + 1
                if self._stop is None or prepared <= self._order.epoch_of(self._stop):
                    self._decoder.pool.submit(self._order.epoch, prepared)

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
        self.digest = chain_digest(self.digest, batch.global_rows)
        self.next_step = batch.step + 1
        return batch

    def close(self) -> None:
        """Drop what is under way and end the threads. May be called twice."""
        self._closed = True
        self._decoder.pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> ShardStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def iterate_rows(shard_set: ShardSet, rows: np.ndarray, batch_size: int, threads: int = 2) -> Iterator[Batch]:
    """The given rows once, in the given order, for evaluation; the last batch may be shorter. Threads end with the iteration."""
    if batch_size < 1:
        raise UsageError(f"batch size is {batch_size}; it must be at least 1", "set a positive batch size")
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    decoder = _Decoder(shard_set, threads, rank=0)
    chunks = (rows[at : at + batch_size] for at in range(0, rows.size, batch_size))
    batches = _Prefetcher(decoder, 2, ((step, chunk, chunk) for step, chunk in enumerate(chunks)))
    try:
        while (batch := batches.next()) is not None:
            yield batch
    finally:
        decoder.pool.shutdown(wait=True, cancel_futures=True)
