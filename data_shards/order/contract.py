"""What an order is: the rows of every global batch of a run, as a pure function of the step.

It knows no ranks and no workers.

`Order` is what everybody else needs of one, `PartedOrder` what the orders of one set have in common, `local_slice` how
a rank takes its part.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Protocol

import numpy as np

from cardialign.data_shards.errors import DataError, UsageError


class Order(Protocol):
    """What streams and substitutes need of an order; `GlobalOrder`, `WindowOrder` and `MixtureOrder` are such."""

    rows: np.ndarray
    codes: np.ndarray
    global_batch: int
    seed: int
    fingerprint: str

    def batch(self, step: int) -> np.ndarray:
        """int64 (global_batch,) dataset rows of a step."""

    def positions(self, step: int) -> np.ndarray:
        """The same as positions into `rows` and `codes`."""

    def pool(self, position: int) -> range:
        """Positions a substitute of this one may be drawn from."""

    def part_of(self, step: int) -> int:
        """Number of the part of the order (epoch, window) that a step begins in."""

    def prepare(self, part: int) -> None:
        """Compute a part ahead of its first batch, in another thread."""


class PartedOrder:
    """What the orders of one set have in common: they are laid out one part (an epoch, a window) at a time, and the
    last few parts are kept.

    rows int64 (n,), dataset rows; codes (n,), patient of every row. A subclass says which part a row of the run lies in
    (`_locate`) and lays a part out (`_compute`). Raises UsageError or DataError for a global batch that is none or
    larger than the selection.
    """

    codes: np.ndarray

    def __init__(self, rows: np.ndarray, global_batch: int, seed: int, fingerprint: str, kept_parts: int) -> None:
        self.rows = np.ascontiguousarray(rows, dtype=np.int64)
        self.global_batch, self.seed, self.fingerprint = global_batch, seed, fingerprint
        self._kept, self._kept_parts = OrderedDict[int, np.ndarray](), kept_parts
        self._lock = threading.Lock()
        n = self.rows.size
        if global_batch < 1:
            raise UsageError(f"global batch is {global_batch}; it must be at least 1", "set a positive global batch")
        if n < global_batch:
            raise DataError(
                f"{n} records are selected, a global batch needs {global_batch}: a batch would hold the same record "
                "twice",
                f"lower the global batch to {max(n, 1)} or less, or select more records",
            )

    @property
    def records(self) -> int:
        return int(self.rows.size)

    def part_of(self, step: int) -> int:
        """Part, counted from the start of the run, of the first row of a step."""
        return self._locate(step * self.global_batch)[0]

    def prepare(self, part: int) -> None:
        """Compute a part before its first batch is asked for."""
        self.part(part)

    def pool(self, position: int) -> range:
        """Positions a substitute for a row that cannot be read may be drawn from: all."""
        return range(self.records)

    def batch(self, step: int) -> np.ndarray:
        """int64 (global_batch,) dataset rows of a step, whichever ranks will read them."""
        return self.rows[self.positions(step)]

    def positions(self, step: int) -> np.ndarray:
        """int (global_batch,): positions into `rows` and `codes` of a step."""
        if step < 0:
            raise UsageError(f"step is {step}; steps count from 0", "give a step of 0 or more")
        start = step * self.global_batch
        end, pieces = start + self.global_batch, []
        while start < end:
            part, at = self._locate(start)
            piece = self.part(part)[at : at + end - start]
            pieces.append(piece)
            start += piece.size
        return np.concatenate(pieces)

    def part(self, part: int) -> np.ndarray:
        """int (m,): the positions (into `rows`) of one part, in order.

        Kept; safe to call from another thread ahead of time.
        """
        with self._lock:
            if part in self._kept:
                self._kept.move_to_end(part)
                return self._kept[part]
        # without the lock: whoever needs another part at this moment must not wait for this one
        order = self._compute(part)
        order.setflags(write=False)
        with self._lock:
            self._kept[part] = order
            if len(self._kept) > self._kept_parts:
                self._kept.popitem(last=False)
            return order

    def _locate(self, row: int) -> tuple[int, int]:
        """Row of the run -> its part, and its place in it."""
        raise NotImplementedError

    def _compute(self, part: int) -> np.ndarray:
        raise NotImplementedError


def local_slice(global_batch: int, rank: int, world_size: int) -> slice:
    """The part of a global batch that rank r of W takes: contiguous, the first `global_batch % W` ranks take one more;
    empty when W > B."""
    if not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} is outside 0..{world_size - 1}", "set RANK and WORLD_SIZE of one launch")
    share, more = divmod(global_batch, world_size)
    start = rank * share + min(rank, more)
    return slice(start, start + share + (rank < more))
