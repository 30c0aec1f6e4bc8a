"""The exposure certificate of an encoder: which records and patients its weights have seen, by which recipe and code.

exposure.json           facts, and the root: the sha256 of the facts, which hold the digest of each list
exposure.safetensors    `record` and `patient`: sorted rows of `hashes`, each record and each hashed patient once

Version 1. `records_are` says "consumed" where the batches of all steps, in the order that was computed again, have the
digest that the checkpoint kept; else "selected": every record that the run might read, of which it read some. `unknown`
says why there may be more; absence is then not known. The salt is told (`salt`) only where the exporter wanted so.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cardialign.data_shards.errors import DataError, UsageError, UserError
from cardialign.data_shards.files import is_count, is_sha256, sha256_of, shortened, write_json
from cardialign.data_shards.secret import Secret
from cardialign.pretrain.export.exposure import hashes
from cardialign.pretrain.export.exposure.hashes import KINDS, PATIENT, RECORD, Group
from cardialign.pretrain.export.exposure.merkle import Tree
from cardialign.pretrain.export.exposure.salt import CertificateSalt, salt_check
from cardialign.pretrain.export.trained_on import TrainedOn, TrainedSet
from cardialign.pretrain.run.integrity import (
    EXPOSURE,
    EXPOSURE_LISTS,
    MODEL,
    SETTINGS,
    VerifiedExport,
    listed_names,
    read_parts,
)
from cardialign.pretrain.run.tensors import load_numbers

FORMAT, VERSION = "cardialign-exposure", 1
CONSUMED, SELECTED = "consumed", "selected"
MOST_ROWS = 1 << 26
"""Of a list: two gigabytes."""
_FLOORS = ("cluster", "data_shards", "kernels", "pretrain")
_AT_ONCE = 1 << 17
"""Rows of an index whose names are in memory at a time."""


def write_certificate(folder: Path, seen: TrainedOn, training: Mapping[str, Any], salt: CertificateSalt) -> None:
    """Write it into an export whose weights and configuration are there. Nothing is written where the names of no
    record are known."""
    named = [each for each in seen.sets if each.records is not None]
    if not named:
        return
    lists = {RECORD: _rows(_keys(named), salt.secret), PATIENT: _rows(_patients(named), salt.secret)}
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "encoder": sha256_of(folder / MODEL),
        "recipe": sha256_of(folder / SETTINGS),
        "code": {"cardialign": importlib.metadata.version("cardialign"), "sources": _code_digest()},
        "training": {key: training[key] for key in ("steps", "digest", "selection_fingerprint") if key in training},
        "records_are": CONSUMED if all(each.records.consumed for each in named if each.records) else SELECTED,
        "sets": [_said(each) for each in named],
        "unknown": [*seen.unknown, *_not_named(seen)],
        "salt_check": salt_check(salt.secret),
        "salt": salt.secret.reveal() if salt.public else None,
        "lists": {kind: {"rows": len(rows), "root": Tree(rows).root} for kind, rows in lists.items()},
    }
    save_file(lists, folder / EXPOSURE_LISTS)
    write_json(folder / EXPOSURE, {"root": root_of(facts), "facts": facts}, indent=2)


def root_of(facts: Mapping[str, Any]) -> str:
    """The root of a certificate: what a third party is given, and holds a proof against."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{FORMAT} {VERSION}\n{text}".encode()).hexdigest()


class Certificate:
    """One that was read, and whose lists have the digests that its facts say."""

    def __init__(self, root: str, facts: dict[str, Any], lists: dict[str, np.ndarray]) -> None:
        self.root, self.facts, self.lists = root, facts, lists
        self._tags = {kind: hashes.halves(rows) for kind, rows in lists.items()}
        self.trees: dict[str, Tree] = {}
        for kind, rows in lists.items():
            first, second = self._tags[kind]
            rising = (first[1:] > first[:-1]) | ((first[1:] == first[:-1]) & (second[1:] > second[:-1]))
            self.trees[kind] = Tree(rows)
            if not rising.all() or self.trees[kind].root != facts["lists"][kind]["root"]:
                raise ValueError(f"its list of {kind}s is not the one that its facts name")

    @classmethod
    def read(cls, folder: Path) -> Certificate:
        """Of an exported encoder. Raises UserError where it has none, or one that is not as it was written."""
        folder = Path(folder)
        if EXPOSURE not in listed_names(folder):
            raise UserError(
                f"{folder} has no exposure certificate",
                "export its run again, with its shards where they were: `cardialign export RUN --overwrite`",
            )
        if (folder / EXPOSURE_LISTS).is_file() and (folder / EXPOSURE_LISTS).stat().st_size > len(KINDS) * (
            MOST_ROWS * hashes.ROW + 4096
        ):
            raise DataError(f"{folder / EXPOSURE_LISTS} is larger than any certificate", "fetch the encoder again")
        parts = read_parts(folder, (EXPOSURE, EXPOSURE_LISTS))
        told = parts.json(EXPOSURE)
        try:
            facts = judged_facts(told.get("facts"))
            if root_of(facts) != told.get("root"):
                raise ValueError("its root is not that of its facts")
            _check_encoder(facts, parts)
            lists = load_numbers(parts.content.pop(EXPOSURE_LISTS))
            wrong = [kind for kind in KINDS if not _fits(lists.get(kind), facts["lists"][kind]["rows"])]
            if wrong or len(lists) != len(KINDS):
                raise ValueError("its lists are not those that its facts name")
            return cls(told["root"], facts, {kind: lists[kind] for kind in KINDS})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise parts.wrong(EXPOSURE, f"no exposure certificate that can be read ({error})") from None

    @property
    def complete(self) -> bool:
        """Whether what is not in it was not seen."""
        return not self.facts["unknown"]

    def patient_groups(self, source: str | None = None) -> list[Group]:
        """The ways in which its patients are numbered and hashed."""
        found = {Group(PATIENT, each["source"], each["salt_check"]): None for each in self.facts["sets"]}
        return [group for group in found if source in (None, group.source)]

    def salt(self, given: Secret | None) -> Secret:
        """The salt to ask with: its own, where it tells it, else the one given. Raises UsageError for none, and for
        another one than it was made with."""
        told = self.facts["salt"]
        salt = given if told is None else Secret(told)
        if salt is None:
            raise UsageError(
                "the certificate's salt is not in the export: without it nobody can ask for a name",
                "give --salt-file; it lies beside the run that was exported (exposure.salt), or is who exported it's "
                "own. A shard set can be asked for without it: --shards",
            )
        if salt_check(salt) != self.facts["salt_check"]:
            raise UsageError("the salt is not the one that the certificate was made with", "look for a mistyped one")
        return salt

    def find(self, names: Sequence[str], group: Group, salt: Secret) -> np.ndarray:
        """int64 (n,): the row of each name in its list, -1 where it is not there."""
        first, second = self._tags[group.kind]
        asked = hashes.first_tags(names, group, salt)
        found = np.full(len(names), -1, dtype=np.int64)
        if not len(first) or not len(asked):
            return found
        rising = np.argsort(asked)
        places = np.empty(len(asked), dtype=np.int64)
        places[rising] = np.searchsorted(first, asked[rising])
        left = np.flatnonzero(first[np.minimum(places, len(first) - 1)] == asked)
        if left.size:
            rest = hashes.tags([names[at] for at in left.tolist()], group, salt)[1]
        while left.size:  # once, but for names of which half the tag is the same
            at = places[left]
            open_ = (at < len(first)) & (first[np.minimum(at, len(first) - 1)] == asked[left])
            left, rest, at = left[open_], rest[open_], at[open_]
            hit = second[at] == rest
            found[left[hit]] = at[hit]
            left, rest = left[~hit], rest[~hit]
            places[left] += 1
        return found

    def position(self, name: str, group: Group, salt: Secret) -> int:
        """Before which row a name that is not there would stand."""
        first, second = self._tags[group.kind]
        one, two = (int(half[0]) for half in hashes.tags([name], group, salt))
        start, end = (int(np.searchsorted(first, np.uint64(one), side)) for side in ("left", "right"))
        return start + int(np.searchsorted(second[start:end], np.uint64(two)))


def judged_facts(facts: Any) -> dict[str, Any]:
    """The facts of a certificate out of somebody's file, when they say what is asked of them. Raises ValueError."""
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or facts.get("version") != VERSION:
        raise ValueError(f"it is no {FORMAT} of version {VERSION}")
    lists, sets, unknown = facts.get("lists"), facts.get("sets"), facts.get("unknown")
    if not isinstance(lists, dict) or set(lists) != set(KINDS):
        raise ValueError("its lists are not named")
    for each in lists.values():
        if not isinstance(each, dict) or not is_count(each.get("rows"), MOST_ROWS) or not is_sha256(each.get("root")):
            raise ValueError(f"a list of {shortened(each)}")
    if not isinstance(sets, list) or not all(isinstance(each, dict) for each in sets):
        raise ValueError("its sets are not named")
    words = [each.get(key) for each in sets for key in ("fingerprint", "source", "salt_check")]
    words += [*unknown] if isinstance(unknown, list) else [None]
    words += [facts.get(key) for key in ("salt_check", "encoder", "recipe", "records_are")]
    if not all(isinstance(word, str) for word in [*words, facts.get("salt") or ""]):
        raise ValueError("a word of it is no text")
    if facts["records_are"] not in (CONSUMED, SELECTED) or "salt" not in facts:
        raise ValueError("it does not say whether its records were consumed or selected, or what of its salt is told")
    return facts


def _check_encoder(facts: Mapping[str, Any], parts: VerifiedExport) -> None:
    if facts["encoder"] != parts.listed.get(MODEL) or facts["recipe"] != parts.listed.get(SETTINGS):
        raise ValueError("it is the certificate of another encoder")


def _fits(rows: np.ndarray | None, count: int) -> bool:
    return rows is not None and rows.dtype == np.uint8 and rows.shape == (count, hashes.ROW)


def _said(each: TrainedSet) -> dict[str, Any]:
    facts, records = each.facts, each.records
    assert records is not None
    return {
        "fingerprint": facts["fingerprint"],
        "source": facts["source"],
        "salt_check": patient_salt_check(records.shard_set.manifest),
        "folds": facts["folds"],
        "split": None if facts["split"] is None else facts["split"]["split"],
        "selected": facts["records"],
        "listed": len(records.rows),
    }


def patient_salt_check(manifest: Mapping[str, Any]) -> str:
    """The check value of the salt of a set's patients; "" of unsalted ones, "unknown" of an earlier release's."""
    options = manifest["source"].get("options", {})
    return str(options.get("salt_check", "unknown")) if options.get("salted") else ""


def _not_named(seen: TrainedOn) -> list[str]:
    """Of sets that are known by an earlier export alone."""
    return [
        f"records of {str(each.facts.get('fingerprint'))[:12]}, on which it was trained before, are listed by the "
        "encoder that it started from"
        for each in seen.sets
        if each.records is None
    ]


def _keys(named: Iterable[TrainedSet]) -> Iterable[tuple[Group, list[str]]]:
    for each in named:
        for names in _column(each, "key"):
            yield Group(RECORD), names


def _patients(named: Iterable[TrainedSet]) -> Iterable[tuple[Group, list[str]]]:
    for each in named:
        assert each.records is not None
        group = Group(PATIENT, each.facts["source"], patient_salt_check(each.records.shard_set.manifest))
        for names in _column(each, "patient"):
            yield group, [name for name in dict.fromkeys(names) if name]


def _column(each: TrainedSet, name: str) -> Iterable[list[str]]:
    assert each.records is not None
    column, rows = each.records.shard_set.index.column(name), each.records.rows
    for at in range(0, len(rows), _AT_ONCE):
        yield column.take(rows[at : at + _AT_ONCE]).to_pylist()


def _rows(groups: Iterable[tuple[Group, list[str]]], salt: Secret) -> np.ndarray:
    """Sorted, each name once."""
    pieces = [hashes.rows_of(names, group, salt) for group, names in groups if names]
    rows = np.concatenate(pieces) if pieces else np.empty((0, hashes.ROW), dtype=np.uint8)
    first, second = hashes.halves(rows)
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return rows[order[new]]


def _code_digest() -> str:
    """sha256 over the Python files of the release that exports."""
    root, digest = Path(__file__).resolve().parents[3], hashlib.sha256()
    for floor in _FLOORS:
        for path in sorted((root / floor).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
