"""Several shard sets read as one: their columns one after the other, their records by row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.shard_set.shard_set import ShardSet, unpack_lead_masks


class JoinedSets:
    """Several shard sets as one, for the stream: columns one after the other, records read from the set they belong to.

    `report` counts on over the sets (-1 none), as `joined_bank.JoinedBank` reads it. Raises DataError for sets of
    different signal specs.
    """

    def __init__(self, sets: Sequence[ShardSet]) -> None:
        specs = {each.spec for each in sets}
        if len(specs) != 1:
            raise DataError(
                "shard sets of a mixture have different signal specs: "
                f"{'; '.join(f'{each.path} {each.spec}' for each in sets)}",
                "build them with the same sampling rate and seconds",
            )
        self.sets, self.spec = tuple(sets), specs.pop()
        self.offsets = tuple(np.concatenate([[0], np.cumsum([len(each) for each in sets])[:-1]]).tolist())
        self._first_report = np.cumsum([0, *(each.report_count for each in sets)])[:-1]
        self._first_shard = np.concatenate([[0], np.cumsum([len(each.shard_names) for each in sets])[:-1]])
        self.shard_names = tuple(f"{each.path.name}/{name}" for each in sets for name in each.shard_names)

    @property
    def fingerprint(self) -> str:
        """Of the contents of all sets, in their order."""
        return hashlib.sha256(json.dumps([each.fingerprint for each in self.sets]).encode()).hexdigest()

    def __len__(self) -> int:
        return sum(map(len, self.sets))

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
    def patients(self) -> np.ndarray:
        """int64: one code per patient of each set; whoever is in two sets counts as two."""
        counts = [int(each.patients.max(initial=-1)) + 1 for each in self.sets]
        firsts = np.cumsum([0, *counts])[:-1]
        return np.concatenate([each.patients + first for each, first in zip(self.sets, firsts, strict=True)])

    @cached_property
    def age_years(self) -> np.ndarray:
        return self._joined("age_years")

    @cached_property
    def sex(self) -> np.ndarray:
        return self._joined("sex")

    @cached_property
    def _lead_mask_bits(self) -> np.ndarray:
        return self._joined("lead_mask_bits")

    def lead_masks(self, rows: np.ndarray) -> np.ndarray:
        """bool (n, 12): False where a lead is missing or unusable."""
        return unpack_lead_masks(self._lead_mask_bits[rows])

    def _own(self, row: int) -> tuple[ShardSet, int]:
        number = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return self.sets[number], row - self.offsets[number]

    def key(self, row: int) -> str:
        own, local = self._own(row)
        return own.key(local)

    def read_payload(self, row: int) -> bytes:
        """The coded signal of one record, checked against its index.

        Raises DataError and StorageError as `ShardSet.read_payload` does.
        """
        own, local = self._own(row)
        return own.read_payload(local)
