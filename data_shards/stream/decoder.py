"""Rows -> float batches in mV: read, check and decode in background threads, the same content whatever the threads.

pcodec holds the interpreter lock while it decodes, so threads overlap decoding with the training step (which releases
it), not with each other; a rank that outruns one core of decoding belongs on more ranks.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from cardialign.data_shards.errors import DataError, StorageError, UsageError
from cardialign.data_shards.order.substitutes import BadSample
from cardialign.data_shards.shard_set.joined import JoinedSets
from cardialign.data_shards.shard_set.payloads import REMEDY
from cardialign.data_shards.shard_set.shard_set import ShardSet
from cardialign.data_shards.signal.codec import decode_into
from cardialign.data_shards.stream.batch import Batch
from cardialign.data_shards.stream.daemon_pool import DaemonPool
from cardialign.data_shards.stream.slow_reads import SlowReadWatch

# records per background task: small enough to share a batch among threads, large enough to make the hand-over cheap
_CHUNK = 32
_KEPT = 8  # buffers to use again; a consumer that keeps more batches than this gets fresh ones
CLOSE_SECONDS = 5.0  # what a read under way may take when the decoder is closed, before it is left to itself
_FREE = 2  # what sys.getrefcount says of a buffer that only the pool's list (and the question itself) refers to


@dataclass(frozen=True)
class ReadAhead:
    """How batches are read in the background. Raises UsageError without a thread.

    threads: that read and decode; prefetch: batches under way at a time; slow_read_seconds: reads that take longer are
    logged while they hang.
    """

    threads: int = 2
    prefetch: int = 4
    slow_read_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"threads is {self.threads}; at least 1 is needed", "set threads to 1 or more")


@dataclass(frozen=True)
class Filled:
    """What one background task did: seconds of reading (and checking) and of decoding, its slowest read, (seconds,
    reads) by shard, what it could not read."""

    read: float
    decode: float
    slowest: tuple[float, int]
    shards: dict[int, tuple[float, int]]
    bad: list[BadSample]


class BatchDecoder:
    """Turns rows into batches in a pool of threads. Batches under way belong to the caller.

    first: position in the global batch of this rank's first row. quarantined: row -> step from which it counts as
    unreadable and is not read again, shared with the caller; None = a record that cannot be read raises DataError,
    otherwise it is noted in `Batch.bad`. A shard or storage that does not give what it holds raises StorageError either
    way. `close()` ends the threads.
    """

    def __init__(
        self,
        shards: ShardSet | JoinedSets,
        read_ahead: ReadAhead,
        rank: int,
        *,
        first: int = 0,
        quarantined: Mapping[int, int] | None = None,
    ) -> None:
        self._shards, self._rank, self._first, self._quarantined = shards, rank, first, quarantined
        self._shape = (12, shards.spec.samples)
        self._buffers: list[np.ndarray] = []
        self.watch = SlowReadWatch(read_ahead.slow_read_seconds, rank)
        self.pool = DaemonPool(read_ahead.threads, "shard-stream")

    def close(self) -> None:
        """End the threads; a read that hangs beyond CLOSE_SECONDS is logged and left behind in its thread, which no
        longer holds anything up."""
        if self.pool.close(CLOSE_SECONDS):
            self.watch.report_left()
        self.watch.close()

    def start(self, step: int, rows: np.ndarray, global_rows: np.ndarray) -> tuple[Batch, list[Future[Filled]]]:
        shards = self._shards
        batch = Batch(
            step=step,
            rows=rows,
            signal=self._buffer(rows.size),
            lead_mask=shards.lead_masks(rows),
            valid_samples=np.empty(rows.size, dtype=np.int32),
            report=shards.report[rows].astype(np.int64, copy=False),
            age_years=shards.age_years[rows],
            sex=shards.sex[rows],
            global_rows=global_rows,
        )
        chunks = (range(at, min(at + _CHUNK, rows.size)) for at in range(0, rows.size, _CHUNK))
        return batch, [self.pool.submit(self.fill, batch, chunk) for chunk in chunks]

    def refill(self, batch: Batch, places: list[int]) -> None:
        """Read the rows that now stand at these places of a batch; `batch.bad` then says which of them could not be
        read."""
        shards, rows = self._shards, batch.rows[places]
        batch.lead_mask[places] = shards.lead_masks(rows)
        for name in ("report", "age_years", "sex"):
            getattr(batch, name)[places] = getattr(shards, name)[rows]
        batch.bad = self.fill(batch, places).bad

    def fill(self, batch: Batch, places: range | list[int]) -> Filled:
        """Read and decode the rows at these places of a batch, in place."""
        read = decode = 0.0
        slowest, bad = (0.0, -1), []
        by_shard: dict[int, tuple[float, int]] = {}
        shards, watch = self._shards, self.watch
        now = time.perf_counter()
        for i in places:
            row = int(batch.rows[i])
            shard = int(shards.shard[row])
            try:
                if self._quarantined is not None and self._quarantined.get(row, batch.step + 1) <= batch.step:
                    raise DataError(f"record {shards.key(row)} is quarantined")
                watch.begin(shards.shard_names[shard])
                try:
                    payload = shards.read_payload(row)
                finally:
                    watch.end()
                then, now = now, time.perf_counter()
                read += now - then
                slowest = max(slowest, (now - then, shard))
                seconds, reads = by_shard.get(shard, (0.0, 0))
                by_shard[shard] = (seconds + now - then, reads + 1)
                # the crc32 of the index covers the payload's own checksum
                batch.valid_samples[i] = decode_into(payload, batch.signal[i], verified=True).valid_samples
                then, now = now, time.perf_counter()
                decode += now - then
            except StorageError:  # of the whole shard, whatever record was asked for
                raise
            except DataError as error:
                sample = self._bad_sample(error, row, i)
                if self._quarantined is None:
                    raise DataError(
                        sample.where(), error.remedy if "shards verify" in error.remedy else REMEDY
                    ) from error
                batch.signal[i], batch.valid_samples[i] = 0.0, 0
                bad.append(sample)
        return Filled(read, decode, slowest, by_shard, bad)

    def name_of(self, shard: int) -> str:
        return self._shards.shard_names[shard] if shard >= 0 else ""

    def _bad_sample(self, error: DataError, row: int, place: int) -> BadSample:
        shards = self._shards
        shard, offset = self.name_of(int(shards.shard[row])), int(shards.offset[row])
        return BadSample(self._first + place, row, shards.key(row), shard, offset, self._rank, error.problem)

    def _buffer(self, rows: int) -> np.ndarray:
        """A signal array that nobody holds any more, or a new one: the pages of a fresh array cost a tenth of what
        decoding into it does."""
        for buffer in self._buffers:
            if buffer.shape[0] == rows and sys.getrefcount(buffer) == _FREE + 1:
                return buffer
        fresh = np.empty((rows, *self._shape), dtype=np.float32)
        if len(self._buffers) < _KEPT:
            self._buffers.append(fresh)
        return fresh


class Prefetcher:
    """Keeps up to `prefetch` batches under way and hands them out in order."""

    def __init__(
        self, decoder: BatchDecoder, prefetch: int, plan: Iterator[tuple[int, np.ndarray, np.ndarray]]
    ) -> None:
        self._decoder, self._prefetch, self._plan = decoder, max(1, prefetch), plan
        self._under_way: deque[tuple[Batch, list[Future[Filled]]]] = deque()

    def next(self) -> Batch | None:
        started = time.perf_counter()
        self._top_up()
        if not self._under_way:
            return None
        batch, parts = self._under_way.popleft()
        self._top_up()
        slowest = (0.0, -1)
        for part in parts:
            filled = part.result()
            batch.wait["read"] += filled.read
            batch.wait["decode"] += filled.decode
            batch.bad += filled.bad
            slowest = max(slowest, filled.slowest)
            for shard, (seconds, reads) in filled.shards.items():
                name = self._decoder.name_of(shard)
                before = batch.shards.get(name, (0.0, 0))
                batch.shards[name] = (before[0] + seconds, before[1] + reads)
        batch.slowest = (slowest[0], self._decoder.name_of(slowest[1]))
        batch.wait["queue"] = time.perf_counter() - started
        return batch

    def _top_up(self) -> None:
        while len(self._under_way) < self._prefetch:
            planned = next(self._plan, None)
            if planned is None:
                return
            self._under_way.append(self._decoder.start(*planned))
