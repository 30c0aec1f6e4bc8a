"""Several shard sets in one run, with weights: one order over all of them, and one set of columns and records for the
stream.

Version 1. A weight becomes a whole number of slots of the global batch, by largest remainder, the same at every step:
the composition of a batch never varies, and the k-th batch of a set is a pure function of k alone, so that every set
keeps the contract of its own order (each record exactly once per epoch of its set, patients apart, any step at random
access). The sets' rows are then shuffled over the slots by a word stream of (seed, step). Rows of the joined sets are
those of the first set, then those of the second, and so on. Patients of different sets count as different.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.order.contract import Order
from cardialign.data_shards.order.global_order import random_words

MIXTURE_VERSION = 1
_STRETCH = 64  # steps whose epochs are computed ahead together


def slots_of(weights: Sequence[float], global_batch: int) -> tuple[int, ...]:
    """Slots of the global batch for every set: shares of the weights, rounded by largest remainder (the earlier set
    first on a tie).

    Raises UsageError for a weight that is not positive and finite, or too small for one slot.
    """
    shares = np.asarray(weights, dtype=np.float64)
    if shares.size == 0 or not (np.isfinite(shares).all() and (shares > 0).all()):
        raise UsageError(
            f"mixture weights {list(weights)} are not all positive", "give every set of the mixture a weight above 0"
        )
    shares = shares / shares.sum() * global_batch
    slots = np.floor(shares).astype(np.int64)
    for place in np.argsort(-(shares - slots), kind="stable")[: global_batch - int(slots.sum())]:
        slots[place] += 1
    for number, (slot, share) in enumerate(zip(slots.tolist(), shares.tolist(), strict=True)):
        if slot == 0:
            raise UsageError(
                f"set {number} of the mixture has weight {weights[number]:g}: {share:.3f} of the {global_batch} slots "
                "of a global batch",
                "raise its weight or the global batch, or leave the set out",
            )
    return tuple(slots.tolist())


class MixtureOrder:
    """Order over several sets: orders[k], whose global batch is the slots of set k, draws from rows that begin at
    offsets[k] of the joined sets."""

    def __init__(self, orders: Sequence[Order], offsets: Sequence[int], seed: int) -> None:
        self._orders, self.seed = tuple(orders), seed
        self.slots = tuple(order.global_batch for order in orders)
        self.global_batch = sum(self.slots)
        facts = [MIXTURE_VERSION, [[order.fingerprint, order.global_batch] for order in orders]]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self.rows = np.concatenate([order.rows + offset for order, offset in zip(orders, offsets, strict=True)])
        self._starts = np.concatenate([[0], np.cumsum([order.rows.size for order in orders])]).tolist()
        codes, first = [], 0
        for order in orders:
            codes.append(order.codes + first)
            first += int(order.codes.max()) + 1
        self.codes = np.concatenate(codes)

    def batch(self, step: int) -> np.ndarray:
        """int64 (global_batch,) rows of the joined sets, whichever ranks will read them."""
        return self.rows[self.positions(step)]

    def positions(self, step: int) -> np.ndarray:
        """int64 (global_batch,) positions into `rows` and `codes` of a step."""
        parts = [order.positions(step) + start for order, start in zip(self._orders, self._starts, strict=False)]
        return np.concatenate(parts)[self._shuffle(step)]

    def pool(self, position: int) -> range:
        """Substitutes come from the same set."""
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return range(self._starts[number], self._starts[number + 1])

    def part_of(self, step: int) -> int:
        """Parts are stretches of a fixed number of steps: the sets enter their epochs and windows at steps of their
        own."""
        return step // _STRETCH

    def prepare(self, part: int) -> None:
        """Compute the epochs or windows that the sets enter in a stretch."""
        first = part * _STRETCH
        for order in self._orders:
            for number in sorted({order.part_of(step) for step in (first, first + _STRETCH)}):
                order.prepare(number)

    def _shuffle(self, step: int) -> np.ndarray:
        if step < 0:
            raise UsageError(f"step is {step}; steps count from 0", "give a step of 0 or more")
        return np.argsort(
            random_words(["mixture", MIXTURE_VERSION, self.seed, step, list(self.slots)], self.global_batch),
            kind="stable",
        )
