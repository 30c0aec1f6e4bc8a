"""Sizes and digests of a text bank's files: written into its `bank.json` when the bank is committed, compared when the
bank is opened and when its shard set is verified."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cardialign.data_shards.array_files import load_array
from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import (
    UNREADABLE_ARRAY,
    Difference,
    FileFacts,
    commit_file,
    difference,
    facts_below,
    facts_of,
    read_bytes,
    sha256_once,
    write_json,
)
from cardialign.data_shards.shard_set.bank_description import REMEDY, judge_bank, listed_files
from cardialign.data_shards.shard_set.layout import BANK_FILE
from cardialign.data_shards.shard_set.storage import patiently

log = logging.getLogger(__name__)


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write the `bank.json` of a bank that is about to be committed, with bytes and sha256 of every other file in its
    `files`."""
    files = {name: asdict(facts) for name, facts in facts_below(folder, but=(BANK_FILE,)).items()}
    write_json(folder / BANK_FILE, {**description, "files": files}, indent=1, sort_keys=True)


def add_derived(folder: Path, name: str) -> dict[str, Any]:
    """Note size and digest of a file that was made from a committed bank, under `derived`: what a run is bound to are
    the bank's own `files`. Returns the new description."""
    description = read_description(folder)
    derived = {**description.get("derived", {}), name: asdict(facts_of(folder / name))}
    write_json(folder / BANK_FILE, {**description, "derived": derived}, indent=1, sort_keys=True)
    return {**description, "derived": derived}


def open_derived(folder: Path, description: Mapping[str, Any], name: str, remedy: str) -> np.ndarray:
    """The array `name`, memory-mapped, that was made from a committed bank; compared with the size and digest that
    bank.json lists since then.

    Raises DataError when it has not been made, or is not as it was made; `remedy` says how it is made.
    """
    path, listed = folder / name, description.get("derived", {}).get(name)
    if listed is not None:
        facts = FileFacts(listed["sha256"], listed["bytes"])
        check_files(folder, {name: facts}, quick=False, remedy=f"delete {path} and {remedy}")
    elif path.exists():
        log.warning("derived path=%s has no digest in %s: made by an earlier release", path, BANK_FILE)
    try:
        return load_array(path, mapped=True)
    except FileNotFoundError:
        raise DataError(f"text bank {folder} has no {name}", remedy) from None
    except UNREADABLE_ARRAY as error:
        raise DataError(f"{path} cannot be read: {error}", f"delete it and {remedy}") from error


def commit_derived(folder: Path, name: str, array: np.ndarray) -> dict[str, Any]:
    """Write `array` beside the arrays of a committed bank by rename, and note it as `add_derived` does. Returns the new
    description. Raises OSError."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would add .npy to it
            np.save(file, array)

    commit_file(folder / name, write)
    return add_derived(folder, name)


def read_description(folder: Path) -> dict[str, Any]:
    """The judged `bank.json` of a bank. Raises DataError for one that is missing or damaged, StorageError for one that
    the storage does not give."""
    file = folder / BANK_FILE
    try:
        text = patiently(lambda: read_bytes(file), str(file))
    except FileNotFoundError:
        raise DataError(f"text bank {folder} has no {BANK_FILE}: it is not whole", REMEDY) from None
    return judge_bank(text, str(file))


def check_files(folder: Path, files: Mapping[str, FileFacts], *, quick: bool, remedy: str = REMEDY) -> None:
    """Compare files of a bank with what its description lists: sizes, and unless `quick` digests, once per process.

    Raises DataError that names the first file that differs and the remedy, StorageError for one that cannot be read.
    """
    for name, facts in sorted(files.items()):
        differing = _compared(folder / name, facts, quick)
        if differing is not None:
            raise DataError(f"text bank {folder}: {_said(differing)}", remedy)


def _compared(file: Path, facts: FileFacts, quick: bool) -> Difference | None:
    try:
        return patiently(lambda: difference(file, facts, quick=quick, digest=sha256_once), str(file))
    except FileNotFoundError:  # it went a moment ago
        return Difference(file.name, "missing")


def _said(differing: Difference) -> str:
    name, found, listed = differing.name, differing.bytes, differing.listed
    if differing.kind == "missing":
        return f"{name} is missing"
    if differing.kind == "size":
        return f"{name} has {found} bytes, {BANK_FILE} says {listed}: {'truncated' if found < listed else 'grown'}"
    return f"{name} is not the one the bank was built with (its sha256 differs): swapped or damaged"


def bank_problems(folder: Path, fingerprint: str, *, quick: bool = False) -> list[str]:
    """What is wrong with a committed bank of the shard set with this fingerprint, in sentences. quick: presence and
    sizes only. Files that `bank.json` does not list are not looked at; every byte of the others is read, however lately
    it was."""
    name = f"text bank {folder.name}"
    try:
        description = judge_bank(read_bytes(folder / BANK_FILE), BANK_FILE)
    except OSError as error:
        return [f"{name}: {BANK_FILE} cannot be read ({error}): build the bank again"]
    except DataError as error:
        return [f"{name}: {error.problem}: build the bank again"]
    problems = []
    if description["shards"] != fingerprint:
        problems.append(
            f"{name} belongs to another shard set ({description['shards'][:12]}..., this one is {fingerprint[:12]}...)"
        )
    for file, facts in sorted(listed_files(description).items()):
        try:
            differing = difference(folder / file, facts, quick=quick)
        except OSError as error:
            problems.append(f"{name}: {file} cannot be read: {error}")
            continue
        if differing is not None:
            problems.append(f"{name}: {_said(differing)}")
    return problems
