"""The order for object storage: shuffled within windows of W shards, so that few shards are open at a time.

A pure function, like `GlobalOrder`.

Version 1. In every epoch the shards are shuffled and cut into windows of at most W, as equal as can be; the windows
follow one another, and the rows of each are shuffled by the rules of `GlobalOrder`, with the window in the place of the
epoch: a batch may end one window and begin the next, patients are kept apart in it, every row occurs exactly once per
epoch, and any step is found without those before it, from one window or two.

Bound: a window of at least B rows lets a batch, and any run of rows no longer than the smallest window, touch at most 2
W shards (`open_shards`). Patients are dealt within a window, so that no batch holds one twice if every window has at
least 2 B patients, none with more records in it than the window has full batches; beyond that they are spread evenly.
Smaller windows keep the permutation, not these two bounds.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import PartedOrder
from cardialign.data_shards.order.global_order import first_of_different_patients, lay_out, random_words

WINDOW_ORDER_VERSION = 1
_CACHED_WINDOWS = 4


class WindowOrder(PartedOrder):
    """Order of `rows` (int64 (n,)) in global batches, shuffled within windows of `window` shards; its parts are the
    windows.

    shards: int (n,) shard of every row; patients: codes aligned to rows, or None. The other arguments and the errors
    are those of `GlobalOrder`; UsageError for a window below 1. Memory beyond rows, shards and codes is that of a few
    windows, whatever n.
    """

    def __init__(
        self,
        rows: np.ndarray,
        shards: np.ndarray,
        patients: np.ndarray | None,
        global_batch: int,
        seed: int,
        fingerprint: str,
        window: int,
    ) -> None:
        if window < 1:
            raise UsageError(f"a shuffle window of {window} shards holds nothing", "set data.window to 1 or more")
        super().__init__(rows, global_batch, seed, fingerprint, _CACHED_WINDOWS)
        self._arguments = (rows, shards, patients, global_batch, seed, fingerprint, window)
        n = self.records
        self.codes = np.arange(n) if patients is None else np.asarray(patients)
        shards = np.asarray(shards)
        if self.codes.shape != (n,) or shards.shape != (n,):
            raise UsageError(
                f"patients has shape {self.codes.shape}, shards {shards.shape}, rows {(n,)}", "give one of each per row"
            )
        self.window = window
        # positions sorted by shard; a selection in the order of the index is sorted already
        self._by_shard = None if (shards[1:] >= shards[:-1]).all() else np.argsort(shards, kind="stable")
        counts = np.unique(shards, return_counts=True)[1]
        self._bounds = np.concatenate([[0], np.cumsum(counts)])
        self._windows = -(-counts.size // window)
        self._layout = lru_cache(maxsize=4)(self._epoch_layout)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    @property
    def open_shards(self) -> int:
        """Shards to keep open: more are never read at a time while windows hold at least a batch."""
        return 2 * self.window

    def _words(self, epoch: int, window: int, purpose: str, size: int) -> np.ndarray:
        return random_words(
            ["window", WINDOW_ORDER_VERSION, self.seed, epoch, self.fingerprint, self.window, window, purpose], size
        )

    def _epoch_layout(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """The shards of every window of an epoch, and where in the epoch each window begins (one more than there are
        windows)."""
        shuffled = np.argsort(self._words(epoch, -1, "shards", self._bounds.size - 1), kind="stable")
        windows = np.array_split(shuffled, self._windows)
        sizes = [int((self._bounds[shards + 1] - self._bounds[shards]).sum()) for shards in windows]
        return windows, np.concatenate([[0], np.cumsum(sizes)])

    def _locate(self, row: int) -> tuple[int, int]:
        epoch, at = divmod(row, self.records)
        starts = self._layout(epoch)[1]
        window = int(np.searchsorted(starts, at, side="right")) - 1
        return epoch * self._windows + window, at - int(starts[window])

    def _members(self, part: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        """Of a window: its positions, their shuffled places, and how many rows it shares with the previous batch's
        window and with the next."""
        epoch, window = divmod(part, self._windows)
        windows, starts = self._layout(epoch)
        places = np.concatenate(
            [np.arange(self._bounds[shard], self._bounds[shard + 1]) for shard in np.sort(windows[window])]
        )
        positions = places if self._by_shard is None else self._by_shard[places]
        head = min(positions.size, -(epoch * self.records + int(starts[window])) % self.global_batch)
        tail = (positions.size - head) % self.global_batch
        return positions, np.argsort(self._words(epoch, window, "rows", positions.size), kind="stable"), head, tail

    def _tail_of(self, part: int) -> np.ndarray:
        """Positions of the last rows of a window, those that share their batch with the next."""
        positions, shuffled, _, size = self._members(part)
        patients, codes = np.unique(self.codes[positions], return_inverse=True)
        return positions[first_of_different_patients(shuffled, codes, size, np.zeros(patients.size, dtype=bool))]

    def _compute(self, part: int) -> np.ndarray:
        positions, shuffled, head, size = self._members(part)
        patients, codes = np.unique(self.codes[positions], return_inverse=True)
        tail = first_of_different_patients(shuffled, codes, size, np.zeros(patients.size, dtype=bool))
        met = np.isin(patients, self.codes[self._tail_of(part - 1)]) if head else np.zeros(patients.size, dtype=bool)
        order = lay_out(
            shuffled, codes, tail, head, met, self.global_batch, partial(self._words, *divmod(part, self._windows))
        )
        return positions[order]
