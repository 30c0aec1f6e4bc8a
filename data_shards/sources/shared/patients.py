"""Who is who: a patient's id as it is kept in shards, and the fold that follows from it."""

from __future__ import annotations

import hashlib

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
