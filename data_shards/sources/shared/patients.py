"""Who is who: a patient's id as it is kept in shards, and the fold that follows from it."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from cardialign.data_shards.secret import Secret
from cardialign.data_shards.sources.shared.matches import EXAMPLES

log = logging.getLogger(__name__)

_LEADING_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")

SHORTEST_SALT = 16
"""Characters under which a salt can be tried out, and is warned of."""

CHECK_ROUNDS = 200_000

NOBODY = frozenset(
    {
        "anonymous",
        "anonymized",
        "anonymised",
        "anonym",
        "anon",
        "unknown",
        "unk",
        "patient",
        "test",
        "dummy",
        "xxx",
        "-1",
    }
)
"""Names that devices and exports give where they name nobody, in small letters."""
_CROWD, _CROWD_SHARE = 20, 0.05
"""Records of one patient, and their share of a set, that are told."""

ALONE = "record "
"""What stands before the name of a record whose patient a table does not name: a patient of its own."""


NO_SALT = Secret("")


def patient_hash(patient: str, salt: Secret = NO_SALT) -> str:
    """16 hex digits of a patient id, keyed with `salt` (BLAKE2b). The salt is kept outside the shards.

    Names of files may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
    """
    key = salt.reveal().encode("utf-8", "surrogatepass")
    if len(key) > hashlib.blake2b.MAX_KEY_SIZE:
        key = hashlib.blake2b(key).digest()
    return hashlib.blake2b(patient.encode("utf-8", "surrogatepass"), key=key, digest_size=8).hexdigest()


@lru_cache(maxsize=8)
def salt_check(salt: Secret) -> str:
    """8 hex digits by which a mistyped salt is told from the one of a set that exists, "" without a salt.

    Keyed with the salt (PBKDF2, `CHECK_ROUNDS` rounds): a salt that nobody can guess cannot be found from it, and one
    in four thousand million wrong ones passes.
    """
    if not salt:
        return ""
    told = salt.reveal().encode("utf-8", "surrogatepass")
    return hashlib.pbkdf2_hmac("sha256", told, b"cardialign salt check", CHECK_ROUNDS, 4).hex()


def about_salt(salt: Secret) -> dict[str, Any]:
    """What a manifest says of the salt: whether there is one, and its check value."""
    return {"salted": True, "salt_check": salt_check(salt)} if salt else {"salted": False}


def fold_of(hashed_patient: str) -> int:
    """Fold 1..10 of a patient, for data sets that publish none."""
    return 1 + int(hashed_patient, 16) % 10


class People:
    """What is doubtful about the patients of a set as a whole, told at the end of a walk: folds, spellings, and names
    that stand for nobody."""

    def __init__(self, source: str) -> None:
        self._folds, self._spellings, self._crowds = Folds(source), Spellings(source), Crowds(source)

    def add(self, hashed: str, patient: str, named: bool, fold: int | None) -> None:
        """named: whether the set names the patient, who may then have several records."""
        if named:
            self._spellings.add(patient)
            self._crowds.add(hashed, patient)
        if fold is None:
            self._folds.without += 1
        else:
            self._folds.add(hashed, fold, patient)

    def tell(self, listed: int, gives_folds: bool) -> None:
        """gives_folds: whether a table has a column of folds, be it blank."""
        self._folds.tell(listed, gives_folds)
        self._spellings.tell()
        self._crowds.tell(listed)


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

    def tell(self, listed: int, gives_folds: bool) -> None:
        if self.without and (self._first or gives_folds):
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


class Spellings:
    """Which patients differ in capitals, blanks or leading zeros alone: `p1` and `P1`, `007` and `7`. They are two
    persons here, and one person under two names is in two folds."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._first: dict[str, str] = {}
        self._alike: dict[str, list[str]] = {}

    def add(self, patient: str) -> None:
        word = _LEADING_ZEROS.sub("", "".join(patient.casefold().split()))
        first = self._first.setdefault(word, patient)
        if first != patient and patient not in (found := self._alike.setdefault(word, [first])):
            found.append(patient)

    def tell(self) -> None:
        if not self._alike:
            return
        some = list(self._alike.values())[:EXAMPLES]
        log.warning(
            "patients spelled alike source=%s names=%d: ids that differ in capitals, blanks or leading zeros alone are "
            "taken for different persons; if they are one, write one id, or what is learnt from one is no secret in "
            "the other: %s",
            self._source,
            len(self._alike),
            "; ".join(" and ".join(repr(name[:60]) for name in names[:4]) for names in some),
        )


class SpellingsOfNumbers(Spellings):
    """The same for hundreds of thousands of patients who are numbers nearly all: these are kept as numbers, 8 bytes
    each and stretch of rows."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._numbers: list[np.ndarray] = []
        self._odd: dict[str, None] = {}

    def add_all(self, patients: Sequence[str], numbers: np.ndarray) -> None:
        """numbers: of `join.id_numbers`, which are the patients themselves from 0 up."""
        self._numbers.append(np.unique(numbers[numbers >= 0]))
        self._odd |= {patients[at]: None for at in np.flatnonzero(numbers < 0).tolist() if patients[at]}

    def tell(self) -> None:
        """Those that are no plain numbers, and the plain numbers that they may be."""
        for patient in self._odd:
            self.add(patient)
            word = _LEADING_ZEROS.sub("", "".join(patient.split()))
            if (
                word.isascii()
                and word.isdigit()
                and len(word) < 19
                and any(int(word) in each for each in self._numbers)
            ):
                self.add(word)
        super().tell()


class Crowds:
    """Which patients have so many records that their name may stand for nobody (`ANONYMOUS`, `0`): all strangers of an
    export would be one person, in one fold, and one another's false positives in training."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._records: Counter[int] = Counter()
        self._names: dict[int, str] = {}

    def add(self, hashed: str, patient: str) -> None:
        who = int(hashed, 16)
        self._records[who] += 1
        if self._records[who] == _CROWD or (self._records[who] > 1 and patient.casefold() in NOBODY):
            self._names[who] = patient

    def tell(self, listed: int) -> None:
        crowds = [
            (self._records[who], name)
            for who, name in self._names.items()
            if name.casefold() in NOBODY or self._records[who] >= _CROWD_SHARE * listed
        ]
        if crowds and (len(self._records) > 1 or any(name.casefold() in NOBODY for _, name in crowds)):
            crowds.sort(key=lambda each: -each[0])
            log.warning(
                "patients with many records source=%s patients=%d of %d records: %s; where a name stands for nobody "
                "(an anonymised export), leave its cells empty, and each record counts as a patient of its own",
                self._source,
                len(crowds),
                listed,
                ", ".join(f"{name[:60]!r} x {times}" for times, name in crowds[:EXAMPLES]),
            )
