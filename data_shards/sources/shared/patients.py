"""Who is who: a patient's id as it is kept in shards, and the fold that follows from it."""

from __future__ import annotations

import hashlib
import logging

from cardialign.data_shards.sources.shared.matches import EXAMPLES

log = logging.getLogger(__name__)

SHORTEST_SALT = 16
"""Characters under which a salt can be tried out, and is warned of."""


def patient_hash(patient: str, salt: str = "") -> str:
    """16 hex digits of a patient id, keyed with `salt` (BLAKE2b). The salt is kept outside the shards.

    Names of files may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
    """
    key = salt.encode("utf-8", "surrogatepass")
    if len(key) > hashlib.blake2b.MAX_KEY_SIZE:
        key = hashlib.blake2b(key).digest()
    return hashlib.blake2b(patient.encode("utf-8", "surrogatepass"), key=key, digest_size=8).hexdigest()


def fold_of(hashed_patient: str) -> int:
    """Fold 1..10 of a patient, for data sets that publish none."""
    return 1 + int(hashed_patient, 16) % 10


class Folds:
    """Which patients a table puts into several folds: training on one of them and testing on another leaks. And how
    many records of a table that has folds are in none of them."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._first: dict[int, int] = {}
        self._split: dict[str, set[int]] = {}
        self.without = 0

    def add(self, hashed: str, fold: int, patient: str) -> None:
        first = self._first.setdefault(int(hashed, 16), fold)
        if first != fold:
            self._split.setdefault(patient, {first}).add(fold)

    def tell(self, listed: int) -> None:
        if self.without and self._first:
            log.warning(
                "folds not given source=%s: the table gives no fold to %d of %d records; theirs follows from the hash "
                "of the patient, so that the folds of this set are no longer the published ones",
                self._source,
                self.without,
                listed,
            )
        if self._split:
            some = list(self._split.items())[:EXAMPLES]
            shown = "; ".join(f"{name[:60]!r} in {', '.join(map(str, sorted(folds)))}" for name, folds in some)
            log.warning(
                "patients in several folds source=%s patients=%d: what is learnt from one fold is no secret in the "
                "other, give each patient one fold: %s",
                self._source,
                len(self._split),
                shown,
            )
