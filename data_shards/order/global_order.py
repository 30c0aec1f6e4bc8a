"""The global order: a pure function (seed, epoch, fingerprint, global batch) -> the rows of every global batch.

It knows no ranks and no workers.

Version 1. The run is the infinite concatenation of epochs, cut into global batches of B rows; every row occurs exactly
once per epoch of n rows, so a batch may end one epoch and begin the next. Within an epoch:

1. Every row gets a random 64-bit word from Philox, keyed by sha256(version, seed, epoch, fingerprint, purpose); sorting
   by these words (stable) is the only shuffle, so the order rests on Philox and on sorting alone, never on a library's
   shuffle.
2. The last t rows (the part of the epoch that shares its batch with the next epoch) are the first rows, in random
   order, of different patients.
3. The first h rows (the part that shares its batch with the previous epoch) are of different patients, and of none in
   that epoch's last rows.
4. The other rows are sorted by (random rank of the patient, random word) and dealt like cards to the full batches,
   which are then shuffled.

So no batch holds two records of a patient, provided that no patient has more records than an epoch has full batches and
that there are at least 2 B patients. Beyond that the order stays a permutation, and a patient with more records than
full batches is spread over them evenly: at most ceil(records / full batches) in one batch. Changing any of this changes
what runs see: it needs a new version number (golden test).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import PartedOrder

ORDER_VERSION = 1
_CACHED_EPOCHS = 3


class GlobalOrder(PartedOrder):
    """Order of `rows` (int64 (n,), dataset rows) in global batches; its parts are the epochs.

    patients: int64 (n,) codes aligned to rows, None = no patient-disjointness asked (only a row is then kept from
    meeting itself in a batch). fingerprint: of the selection, so that another data set is another order. Raises
    DataError when there are fewer rows than a batch needs.
    """

    def __init__(
        self, rows: np.ndarray, patients: np.ndarray | None, global_batch: int, seed: int, fingerprint: str
    ) -> None:
        super().__init__(rows, global_batch, seed, fingerprint, _CACHED_EPOCHS)
        self.patients = patients
        n = self.records
        given = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64) if patients is None else np.asarray(patients)
        if given.shape != (n,):
            raise UsageError(f"patients has shape {given.shape}, rows {(n,)}", "give one patient code per row")
        self.codes = _compact(given)
        self._patient_count = int(self.codes.max()) + 1

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rows, self.patients, self.global_batch, self.seed, self.fingerprint)

    def _locate(self, row: int) -> tuple[int, int]:
        return divmod(row, self.records)

    def _words(self, epoch: int, purpose: str, size: int) -> np.ndarray:
        return random_words([ORDER_VERSION, self.seed, epoch, self.fingerprint, purpose], size)

    def _parts(self, epoch: int) -> tuple[int, int]:
        """h, t: rows of the epoch in the batch shared with the previous epoch, and in the one shared with the next."""
        n, batch = self.records, self.global_batch
        return -(epoch * n) % batch, (epoch + 1) * n % batch

    def _shuffled(self, epoch: int) -> np.ndarray:
        return _narrow(np.argsort(self._words(epoch, "rows", self.records), kind="stable"))

    def _tail(self, epoch: int, shuffled: np.ndarray) -> np.ndarray:
        _, tail = self._parts(epoch)
        return first_of_different_patients(shuffled, self.codes, tail, np.zeros(self._patient_count, dtype=bool))

    def _compute(self, epoch: int) -> np.ndarray:
        head, _ = self._parts(epoch)
        shuffled = self._shuffled(epoch)
        met = np.zeros(self._patient_count, dtype=bool)
        if head:
            met[self.codes[self._tail(epoch - 1, self._shuffled(epoch - 1))]] = True
        tail = self._tail(epoch, shuffled)
        return lay_out(shuffled, self.codes, tail, head, met, self.global_batch, partial(self._words, epoch))


def _narrow(positions: np.ndarray) -> np.ndarray:
    """Positions in half the memory, where they fit: an epoch of ten million rows is then sorted in under half a
    gigabyte."""
    return positions.astype(np.int32) if positions.size < 2**31 else positions


def _compact(codes: np.ndarray) -> np.ndarray:
    """Codes -> 0..k-1 in the order of the codes: what `np.unique` gives, without sorting where the codes are small
    whole numbers."""
    if codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= 4 * codes.size + 1024:
        return np.unique(codes, return_inverse=True)[1]
    present = np.zeros(int(codes.max()) + 1, dtype=bool)
    present[codes] = True
    if present.all():
        return codes  # they are so already, and ten million of them are 40 MB
    return (np.cumsum(present, dtype=codes.dtype) - codes.dtype.type(1))[codes]


def random_words(label: list[Any], size: int) -> np.ndarray:
    """uint64 (size,): raw Philox words keyed by sha256 of the label; the only randomness of any order."""
    key = int.from_bytes(hashlib.sha256(json.dumps(label).encode()).digest()[:16], "little")
    return np.random.Philox(key=key).random_raw(size)


def lay_out(
    shuffled: np.ndarray,
    codes: np.ndarray,
    tail: np.ndarray,
    head_size: int,
    met: np.ndarray,
    global_batch: int,
    words: Callable[[str, int], np.ndarray],
) -> np.ndarray:
    """Shuffled positions -> head (of patients not in `met`, bool per patient), full batches dealt so that no patient
    meets itself, tail (as given).

    codes: patient of every position. words(purpose, size): random words.
    """
    taken = np.zeros(codes.size, dtype=bool)
    taken[tail] = True
    head = first_of_different_patients(shuffled[~taken[shuffled]], codes, head_size, met)
    taken[head] = True
    middle = _deal(shuffled[~taken[shuffled]], codes, met.size, global_batch, words)
    return np.concatenate([head, middle, tail])


def _deal(
    positions: np.ndarray,
    codes: np.ndarray,
    patient_count: int,
    global_batch: int,
    words: Callable[[str, int], np.ndarray],
) -> np.ndarray:
    """Deal shuffled positions, grouped by patient in random patient order, round-robin to the full batches; then
    shuffle the batches."""
    batches = positions.size // global_batch
    if batches == 0:
        return positions
    rank = np.empty(patient_count, dtype=np.int32 if patient_count < 2**31 else np.int64)
    rank[np.argsort(words("patients", patient_count), kind="stable")] = np.arange(patient_count)
    grouped = positions[np.argsort(rank[codes[positions]], kind="stable")]
    dealt = grouped.reshape(global_batch, batches)  # column b = every `batches`-th card, from the b-th on
    shuffle = np.argsort(words("batches", batches), kind="stable")
    return dealt[:, shuffle].T.ravel()


def first_of_different_patients(positions: np.ndarray, codes: np.ndarray, size: int, met: np.ndarray) -> np.ndarray:
    """The first `size` positions whose patients differ from each other and from those in `met` (bool per patient).

    Where there are too few, repeats fill up: first of patients already chosen here, then of patients in `met`; always
    in the given order.
    """
    if size == 0:
        return positions[:0]
    window = min(positions.size, 4 * size)  # almost always enough, and far shorter than an epoch
    while True:
        near = positions[:window]
        patients = codes[near]
        first = np.zeros(window, dtype=bool)
        first[np.unique(patients, return_index=True)[1]] = True
        rejection = np.where(met[patients], 2, np.where(first, 0, 1))
        if window == positions.size or int((rejection == 0).sum()) >= size:
            return near[np.argsort(rejection, kind="stable")[:size]]
        window = min(positions.size, 4 * window)
