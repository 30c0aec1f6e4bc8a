"""Records that cannot be read, and which record stands in for each: the same on every rank, every world size and every
replay.

The substitute of a row is the first acceptable draw of a sequence that depends on (seed, step, row) alone. Acceptable:
selected, not quarantined, not in the batch already, and of a patient the batch does not hold. So what a step trains on
is a pure function of the order and of the set of rows that were quarantined by then, in whatever sequence and on
whatever rank they were found. A substitute is seen once more than its epoch would show it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.order.contract import Order

SUBSTITUTE_VERSION = 1
_DRAWS = 256


@dataclass(frozen=True)
class BadSample:
    """A record that could not be read: its position in the global batch, its row, where it lies, the rank that met it,
    and what was wrong."""

    position: int
    row: int
    key: str
    shard: str
    offset: int
    rank: int
    problem: str

    def where(self) -> str:
        return f"record {self.key}, shard {self.shard}, offset {self.offset}, rank {self.rank}: {self.problem}"


def substitutes(order: Order, step: int, quarantined: Mapping[int, int]) -> dict[int, int]:
    """Position in the global batch of `step` -> the row read in its place, for every row of the batch that is
    quarantined by then.

    quarantined: row -> step from which it counts as unreadable. Raises DataError when no record is left to stand in.
    """
    positions = order.positions(step)
    rows = order.rows[positions].tolist()
    bad = [place for place, row in enumerate(rows) if quarantined.get(row, step + 1) <= step]
    held, chosen = set(rows), {}
    patients = set(order.codes[np.delete(positions, bad)].tolist())
    for place in bad:
        candidate = _stand_in(order, step, int(positions[place]), quarantined, held, patients)
        row = chosen[place] = int(order.rows[candidate])
        held.add(row)
        patients.add(int(order.codes[candidate]))
    return chosen


def _stand_in(
    order: Order, step: int, position: int, quarantined: Mapping[int, int], held: set[int], patients: set[int]
) -> int:
    for other_patients_only in (True, False):
        for candidate in _candidates(order, step, position):
            row = int(order.rows[candidate])
            if row in held or quarantined.get(row, step + 1) <= step:
                continue
            if not other_patients_only or int(order.codes[candidate]) not in patients:
                return candidate
    raise DataError(
        f"step {step}: no readable record is left to stand in for row {int(order.rows[position])}",
        "lower the global batch, select more records, or repair the shards named in quarantine.jsonl",
    )


def _candidates(order: Order, step: int, position: int) -> Iterator[int]:
    """Random draws first, then the whole pool from the last draw on, so that a substitute is found when there is
    one."""
    label = json.dumps(
        ["substitute", SUBSTITUTE_VERSION, order.seed, step, int(order.rows[position]), order.fingerprint]
    )
    key = int.from_bytes(hashlib.sha256(label.encode()).digest()[:16], "little")
    pool = order.pool(position)
    drawn = (np.random.Philox(key=key).random_raw(_DRAWS) % np.uint64(len(pool))).tolist()
    for draw in drawn:
        yield pool[draw]
    for further in range(1, len(pool)):
        yield pool[(drawn[-1] + further) % len(pool)]


def describe_bad(samples: Iterable[BadSample], shown: int = 3) -> str:
    """Shards with the number of bad records in each and the first keys: "shard-000001.tar (3 records: a, b, c)"."""
    by_shard: dict[str, list[str]] = {}
    for sample in samples:
        by_shard.setdefault(sample.shard, []).append(sample.key)
    return "; ".join(
        f"{shard} ({len(keys)} record{'s' if len(keys) > 1 else ''}: "
        f"{', '.join(keys[:shown])}{', ...' if len(keys) > shown else ''})"
        for shard, keys in sorted(by_shard.items())
    )
