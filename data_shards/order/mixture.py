"""Several shard sets in one run, with weights: one order over all of them, and one set of columns and records for the stream.

Version 1. A weight becomes a whole number of slots of the global batch, by largest remainder, the same at every step: the composition of a batch
never varies, and the k-th batch of a set is a pure function of k alone, so that every set keeps the contract of its own order (each record exactly
once per epoch of its set, patients apart, any step at random access). The sets' rows are then shuffled over the slots by a word stream of
(seed, step). Rows of the joined sets are those of the first set, then those of the second, and so on. Patients of different sets count as different.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.order.global_order import random_words
from cardialign.data_shards.order.substitutes import Order
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.shard_set.shard_set import ShardSet, unpack_lead_masks

MIXTURE_VERSION = 1
_STRETCH = 64  # steps whose epochs are computed ahead together


def slots_of(weights: Sequence[float], global_batch: int) -> tuple[int, ...]:
    """Slots of the global batch for every set: shares of the weights, rounded by largest remainder (the earlier set first on a tie).

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
                f"set {number} of the mixture has weight {weights[number]:g}: {share:.3f} of the {global_batch} slots of a global batch",
                "raise its weight or the global batch, or leave the set out",
            )
    return tuple(slots.tolist())


class MixtureOrder:
    """Order over several sets. Make it with `mix`; `set_of` says which set a row belongs to."""

    def __init__(self, orders: Sequence[Order], offsets: Sequence[int], seed: int) -> None:
        self._orders, self._offsets, self.seed = tuple(orders), tuple(offsets), seed
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

    @property
    def records(self) -> int:
        return int(self.rows.size)

    def epochs_of(self, step: int) -> tuple[float, ...]:
        """Passes over every set that are done when a step begins."""
        return tuple(step * slots / order.rows.size for slots, order in zip(self.slots, self._orders, strict=True))

    def set_of(self, rows: np.ndarray) -> np.ndarray:
        """int64: number of the set of every row."""
        return np.searchsorted(np.asarray(self._offsets), rows, side="right") - 1

    def slot_sets(self, step: int) -> np.ndarray:
        """int64 (global_batch,): the set that every slot of a step draws from, a pure function of seed, step and weights."""
        return np.repeat(np.arange(len(self.slots)), self.slots)[self._shuffle(step)]

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
        """Parts are stretches of a fixed number of steps: the sets enter their epochs and windows at steps of their own."""
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


def mix(
    sets: Sequence[ShardSet],
    weights: Sequence[float],
    global_batch: int,
    seed: int,
    order_of: Callable[[ShardSet, int], Order],
) -> tuple[JoinedSets, MixtureOrder]:
    """Shard sets and weights -> what the stream reads from, and the order. order_of(set, slots) makes the order of one set for its slots."""
    slots = slots_of(weights, global_batch)
    if len(slots) != len(sets):
        raise UsageError(f"{len(sets)} shard sets, {len(slots)} weights", "give one weight per set")
    joined = JoinedSets(sets)
    return joined, MixtureOrder(
        [order_of(each, slot) for each, slot in zip(sets, slots, strict=True)], joined.offsets, seed
    )


class JoinedSets:
    """Several shard sets as one, for the stream: columns one after the other, records read from the set they belong to.

    `report` counts on over the sets (-1 none), as `joined_bank.JoinedBank` reads it. Raises DataError for sets of different signal specs.
    """

    def __init__(self, sets: Sequence[ShardSet]) -> None:
        specs = {each.spec for each in sets}
        if len(specs) != 1:
            raise DataError(
                f"shard sets of a mixture have different signal specs: {'; '.join(f'{each.path} {each.spec}' for each in sets)}",
                "build them with the same sampling rate and seconds",
            )
        self.sets, self.spec = tuple(sets), specs.pop()
        self.offsets = tuple(np.concatenate([[0], np.cumsum([len(each) for each in sets])[:-1]]).tolist())
        self._first_report = np.cumsum([0, *(each.manifest["counts"]["reports"] for each in sets)])[:-1]
        self._first_shard = np.concatenate([[0], np.cumsum([len(each.shard_names) for each in sets])[:-1]])
        self.shard_names = tuple(f"{each.path.name}/{name}" for each in sets for name in each.shard_names)

    @property
    def fingerprint(self) -> str:
        """Of the contents of all sets, in their order."""
        return hashlib.sha256(json.dumps([each.fingerprint for each in self.sets]).encode()).hexdigest()

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def set_of_rows(self, rows: np.ndarray) -> np.ndarray:
        """int64: number of the set of every row."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def _joined(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(each, name) for each in self.sets])

    @cached_property
    def shard(self) -> np.ndarray:
        return np.concatenate([each.shard + first for each, first in zip(self.sets, self._first_shard, strict=True)])

    @cached_property
    def offset(self) -> np.ndarray:
        return self._joined("offset")

    @cached_property
    def report(self) -> np.ndarray:
        return np.concatenate(
            [
                np.where(each.report < 0, -1, each.report + first)
                for each, first in zip(self.sets, self._first_report, strict=True)
            ]
        )

    @cached_property
    def age_years(self) -> np.ndarray:
        return self._joined("age_years")

    @cached_property
    def sex(self) -> np.ndarray:
        return self._joined("sex")

    @cached_property
    def _lead_masks(self) -> np.ndarray:
        return self._joined("_lead_masks")

    def lead_masks(self, rows: np.ndarray) -> np.ndarray:
        """bool (n, 12): False where a lead is missing or unusable."""
        return unpack_lead_masks(self._lead_masks[rows])

    def _own(self, row: int) -> tuple[ShardSet, int]:
        number = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return self.sets[number], row - self.offsets[number]

    def key(self, row: int) -> str:
        own, local = self._own(row)
        return own.key(local)

    def read_payload(self, row: int) -> bytes:
        """The coded signal of one record, checked against its index. Raises DataError naming record, shard and offset."""
        own, local = self._own(row)
        return own.read_payload(local)

    def read_record(self, row: int) -> EcgRecord:
        """One record with everything its shard knows about it."""
        own, local = self._own(row)
        return own.read_record(local)
