"""Patient-level splits by salted hash: a patient is in train, val or test for ever, whatever else is added to the data
set.

The hash of (salt, patient) is a number in [0, 1); the lowest part is test, the next val, the rest train. So growing
`val` or `test` never moves a patient between those two sets that are evaluated on and back, and adding records,
patients or shards moves nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cardialign.data_shards.errors import UsageError

SPLITS = ("train", "val", "test")
SALT = "cardialign-split-1"
"""Default salt: public, so that everyone gets the same split.

It does not hide patients; the salt of the patient ids does.
"""
FRACTIONS = (0.8, 0.1, 0.1)


@dataclass(frozen=True)
class SplitRule:
    """Which part is meant and how patients are dealt. fractions: train, val, test, summing to 1.

    Raises UsageError for anything else.
    """

    split: str
    salt: str = SALT
    fractions: tuple[float, ...] = FRACTIONS

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UsageError(f"unknown split {self.split!r}", f"choose one of {', '.join(SPLITS)}")
        object.__setattr__(self, "fractions", check_fractions(self.fractions))


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """The three fractions as a tuple. Raises UsageError unless there are three, none negative, summing to 1."""
    values = tuple(float(fraction) for fraction in fractions)
    if len(values) != 3 or not all(0 <= value <= 1 for value in values) or abs(sum(values) - 1) > 1e-9:
        raise UsageError(
            f"split fractions {list(fractions)}",
            "give train, val and test, each 0 to 1, summing to 1, e.g. 0.8 0.1 0.1",
        )
    return values


def split_of(patient: str, salt: str = SALT, fractions: Sequence[float] = FRACTIONS) -> str:
    """ "train", "val" or "test" of one patient id. Raises UsageError for fractions that are no split."""
    _, val, test = check_fractions(fractions)
    place = _place(patient, salt)
    return "test" if place < test else "val" if place < test + val else "train"


def in_split(patients: Sequence[str], rule: SplitRule) -> np.ndarray:
    """bool (n,): which of these patients are in the split."""
    held = (split_of(patient, rule.salt, rule.fractions) == rule.split for patient in patients)
    return np.fromiter(held, dtype=bool, count=len(patients))


def _place(patient: str, salt: str) -> float:
    key = hashlib.sha256(salt.encode()).digest()
    return int.from_bytes(hashlib.blake2b(patient.encode(), key=key, digest_size=8).digest(), "big") / 2**64
