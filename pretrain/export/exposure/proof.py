"""What shows a third party, who has the root of a certificate and nothing else, that a name is in it or is not.

Version 1 is a JSON object: the facts of the certificate, whose digest is the root; the blocks of its lists that are
needed, each with its way up; and of each name its tag and, where it is in a list, the nonce that its row was made with.
That a name is there follows from the root alone. That it is not follows from the root and from its tag; whose tag that
is can only be computed with the salt, so that a proof of absence says `named: False` to whoever checks without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cardialign.data_shards.errors import DataError, UsageError
from cardialign.data_shards.files import is_count, shortened
from cardialign.data_shards.secret import Secret
from cardialign.pretrain.export.exposure import hashes
from cardialign.pretrain.export.exposure.certificate import Certificate, judged_facts, root_of
from cardialign.pretrain.export.exposure.hashes import ROW, TAG, Group
from cardialign.pretrain.export.exposure.merkle import BLOCK, blocks_of, root_of_nothing, root_over
from cardialign.pretrain.export.exposure.salt import salt_check

FORMAT, VERSION = "cardialign-exposure-proof", 1
MOST_NAMES = 20_000
"""In one proof."""
_LONGEST_NAME = 4096


@dataclass(frozen=True)
class Shown:
    """What a proof shows of a name. named: whether it follows that the row, or the gap, is that name's."""

    kind: str
    name: str
    present: bool
    named: bool


def prove(certificate: Certificate, asked: Iterable[tuple[Group, str]], salt: Secret) -> dict[str, Any]:
    """Raises UsageError for more than MOST_NAMES."""
    names, blocks = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for group, name in asked:
        if len(names) == MOST_NAMES:
            raise UsageError(f"a proof is of at most {MOST_NAMES} names", "ask for fewer with --out")
        row = int(certificate.find([name], group, salt)[0])
        first, second = (int(half[0]) for half in hashes.tags([name], group, salt))
        told = {"kind": group.kind, "source": group.source, "salt_check": group.salt_check, "name": name}
        told |= {"tag": f"{first:016x}{second:016x}"}
        if row >= 0:
            wanted = {row // BLOCK}
            told["nonce"] = hashes.nonces([name], group, salt)[0].tobytes().hex()
        else:
            at, last = certificate.position(name, group, salt), len(certificate.lists[group.kind]) - 1
            wanted = {max(at - 1, 0) // BLOCK, min(at, last) // BLOCK} if last >= 0 else set()
        names.append({**told, "blocks": sorted(wanted)})
        for block in wanted:
            key = f"{group.kind} {block}"
            if key not in blocks:
                rows = certificate.lists[group.kind][block * BLOCK : (block + 1) * BLOCK]
                blocks[key] = {"rows": rows.tobytes().hex(), "way": certificate.trees[group.kind].way(block)}
    return {"format": FORMAT, "version": VERSION, "facts": certificate.facts, "blocks": blocks, "names": names}


def check(values: Mapping[str, Any], root: str, salt: Secret | None = None) -> list[Shown]:
    """What a proof shows to whoever trusts this root. Raises DataError where it shows anything else than it says, and
    UsageError for another salt than the certificate's."""
    try:
        if values.get("format") != FORMAT or values.get("version") != VERSION:
            raise ValueError(f"it is no {FORMAT} of version {VERSION}")
        facts = judged_facts(values.get("facts"))
        if root_of(facts) != root:
            raise ValueError(f"it is of another certificate: its root is {root_of(facts)}")
        if salt is None and facts["salt"] is not None:
            salt = Secret(facts["salt"])
        if salt is not None and salt_check(salt) != facts["salt_check"]:
            raise UsageError("the salt is not the one that the certificate was made with", "look for a mistyped one")
        blocks = {key: _block(key, each, facts) for key, each in values["blocks"].items()}
        names = values["names"]
        if not isinstance(names, list) or len(names) > MOST_NAMES:
            raise ValueError(f"it is of no list of at most {MOST_NAMES} names")
        return [_shown(each, facts, blocks, salt) for each in names]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"the proof does not hold: {error}", "ask for a new one") from None


def _block(key: str, told: Mapping[str, Any], facts: Mapping[str, Any]) -> np.ndarray:
    """The rows of a block, which is where it says it is in the list under the root."""
    kind, _, number = key.partition(" ")
    if kind not in hashes.KINDS or not re.fullmatch(r"0|[1-9][0-9]{0,9}", number):
        raise ValueError(f"a block {shortened(key)}")
    of, block = facts["lists"][kind], int(number)
    content = _bytes(told["rows"], None)
    if len(content) != ROW * min(BLOCK, of["rows"] - block * BLOCK):
        raise ValueError(f"block {key} has not the rows that it has in the list")
    if root_over(content, block, of["rows"], [_bytes(each, 32).hex() for each in told["way"]]) != of["root"]:
        raise ValueError(f"block {key} is not in the list under the root")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, ROW)


def _bytes(text: Any, length: int | None) -> bytes:
    if not isinstance(text, str) or not re.fullmatch("(?:[0-9a-f]{2})*", text):
        raise ValueError(f"{shortened(text)} is no hexadecimal text")
    if length is not None and len(text) != 2 * length:
        raise ValueError(f"{shortened(text)} has not {length} bytes")
    return bytes.fromhex(text)


def _shown(
    told: Mapping[str, Any], facts: Mapping[str, Any], blocks: Mapping[str, np.ndarray], salt: Secret | None
) -> Shown:
    words = [told[key] for key in ("kind", "source", "salt_check", "name")]
    if not all(isinstance(word, str) and len(word) <= _LONGEST_NAME for word in words) or "\n" in "".join(words):
        raise ValueError("a name or its group is no short text of one line")
    kind, source, check_value, name = words
    group, tag, where = Group(kind, source, check_value), _bytes(told["tag"], TAG), told["blocks"]
    groups = {(hashes.RECORD, "", "")} | {(hashes.PATIENT, e["source"], e["salt_check"]) for e in facts["sets"]}
    if (kind, source, check_value) not in groups:
        raise ValueError(f"the certificate has no group {shortened(group.word)}")
    if not isinstance(where, list) or not all(map(is_count, where)) or len(where) > 2 or set(told) - _KEYS:
        raise ValueError(f"{shortened(name)} has no places that can be")
    if salt is not None and b"".join(int(h[0]).to_bytes(8) for h in hashes.tags([name], group, salt)) != tag:
        raise ValueError(f"the tag of {shortened(name)} is another name's")
    rows = [blocks[f"{kind} {block}"] for block in where]
    if "nonce" not in told:
        _check_gap(tag, where, rows, facts["lists"][kind])
        return Shown(kind, name, False, salt is not None)
    wanted = tag + hashes.commitment(_bytes(told["nonce"], TAG), group, name)
    if len(rows) != 1 or wanted not in {row.tobytes() for row in rows[0]}:
        raise ValueError(f"{shortened(name)} is in none of its blocks")
    return Shown(kind, name, True, True)


_KEYS = {"kind", "source", "salt_check", "name", "tag", "nonce", "blocks"}


def _check_gap(tag: bytes, where: list[int], rows: list[np.ndarray], of: Mapping[str, Any]) -> None:
    """Raises ValueError unless no row of the list has this tag: it lies between two rows that stand side by side, or
    beyond the first or the last one."""
    if of["rows"] == 0:
        if of["root"] != root_of_nothing():
            raise ValueError("a list without rows has another root")
        return
    if not where or where != list(range(where[0], where[0] + len(where))):
        raise ValueError("its blocks do not stand side by side")
    tags = [row[:TAG].tobytes() for each in rows for row in each]
    if tags != sorted(set(tags)):
        raise ValueError("its rows are not in order")
    before, behind = where[0] == 0 or tags[0] < tag, where[-1] == blocks_of(of["rows"]) - 1 or tag < tags[-1]
    if tag in tags or not before or not behind:
        raise ValueError("it leaves open whether the name is in the list")
