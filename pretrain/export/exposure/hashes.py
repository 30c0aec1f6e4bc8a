"""What stands for a record or a patient in an exposure certificate: 32 bytes that say nothing without the salt.

A row of a list is tag (16 bytes, big-endian) and commitment (16 bytes). The tag says where a name stands: SipHash-2-4
twice (each stirred by the last steps of SplitMix64, as pandas gives it), with keys that follow from salt, kind and
group. A million names take half a second, and without the salt nobody can tell whose tag one is. The commitment is
BLAKE2b over a nonce, which follows from salt and name in the same way, and the name: who is given the nonce of one name
sees that the row is that name's, and learns of no other.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cardialign.data_shards.errors import UsageError
from cardialign.data_shards.secret import Secret

ROW, TAG = 32, 16
"""Bytes of a row, and of the tag in it."""
RECORD, PATIENT = "record", "patient"
KINDS = (RECORD, PATIENT)
_PERSON = b"exposure"


@dataclass(frozen=True)
class Group:
    """Names among which each stands for one thing. kind: of a list; source, salt_check: of hashed patients, the source
    that numbers them and the check value of the salt of its set ("" without one); of records both are ""."""

    kind: str
    source: str = ""
    salt_check: str = ""

    @property
    def word(self) -> str:
        return "\n".join((self.kind, self.source, self.salt_check))


def tags(names: Sequence[str], group: Group, salt: Secret) -> tuple[np.ndarray, np.ndarray]:
    """uint64 (n,) twice: the halves of the tag of each name. Raises UsageError for a name that is no text."""
    first, second = (_sip(names, _key(salt, group, part)) for part in ("tag 1", "tag 2"))
    return first, second


def first_tags(names: Sequence[str], group: Group, salt: Secret) -> np.ndarray:
    """The first halves alone: what rules out nearly every name that is not there."""
    return _sip(names, _key(salt, group, "tag 1"))


def nonces(names: Sequence[str], group: Group, salt: Secret) -> np.ndarray:
    """uint8 (n, 16)."""
    halves = [_sip(names, _key(salt, group, part)) for part in ("nonce 1", "nonce 2")]
    return np.stack(halves, axis=1).astype(">u8").view(np.uint8)


def commitment(nonce: bytes, group: Group, name: str) -> bytes:
    """16 bytes that fit this name of this group, and no other one that anybody can find."""
    content = f"{group.word}\n{name}".encode()
    return hashlib.blake2b(nonce + content, digest_size=ROW - TAG, person=_PERSON).digest()


def rows_of(names: Sequence[str], group: Group, salt: Secret) -> np.ndarray:
    """uint8 (n, 32), in the order of the names."""
    rows = np.empty((len(names), ROW), dtype=np.uint8)
    rows[:, :TAG] = np.stack(tags(names, group, salt), axis=1).astype(">u8").view(np.uint8)
    given = nonces(names, group, salt)
    said = b"".join(commitment(given[at].tobytes(), group, name) for at, name in enumerate(names))
    rows[:, TAG:] = np.frombuffer(said, dtype=np.uint8).reshape(-1, ROW - TAG)
    return rows


def halves(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint64 (n,) twice: the tags of rows of a list."""
    words = np.ascontiguousarray(rows[:, :TAG]).view(">u8").astype(np.uint64)
    return words[:, 0], words[:, 1]


def _key(salt: Secret, group: Group, part: str) -> str:
    """16 characters, as SipHash takes them here: 96 bits that nobody knows who has not the salt."""
    given = hashlib.blake2b(salt.reveal().encode(), digest_size=64, person=_PERSON).digest()
    made = hashlib.blake2b(f"{part}\n{group.word}".encode(), key=given, digest_size=12, person=_PERSON).digest()
    return base64.urlsafe_b64encode(made).decode()


def _sip(names: Sequence[str], key: str) -> np.ndarray:
    from pandas.util import hash_array

    array = np.empty(len(names), dtype=object)
    array[:] = names
    try:
        return hash_array(array, encoding="utf8", hash_key=key, categorize=False)
    except (UnicodeEncodeError, TypeError) as error:
        raise UsageError(f"a name is no UTF-8 text: {error}", "give the names as they stand in the set") from None
