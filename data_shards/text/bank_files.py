"""Sizes and digests of a text bank's files: written into its `bank.json` when the bank is committed, compared when a
shard set is verified."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cardialign.data_shards.files import FileFacts, difference, facts_below, write_json
from cardialign.data_shards.shard_set.layout import BANK_FILE


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write the `bank.json` of a bank that is about to be committed, with bytes and sha256 of every other file in its
    `files`."""
    files = {name: asdict(facts) for name, facts in facts_below(folder, but=(BANK_FILE,)).items()}
    write_json(folder / BANK_FILE, {**description, "files": files}, indent=1, sort_keys=True)


def bank_problems(folder: Path, fingerprint: str, *, quick: bool = False) -> list[str]:
    """What is wrong with a committed bank of the shard set with this fingerprint, in sentences. quick: presence and
    sizes only. Files that `bank.json` does not list are not looked at."""
    name = f"text bank {folder.name}"
    try:
        description = json.loads((folder / BANK_FILE).read_text(encoding="utf-8"))
        files = {
            file: FileFacts(str(facts["sha256"]), int(facts["bytes"])) for file, facts in description["files"].items()
        }
        shards = description["shards"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{name}: {BANK_FILE} cannot be read or lists no digests ({error}): build the bank again"]
    problems = []
    if shards != fingerprint:
        problems.append(
            f"{name} belongs to another shard set ({str(shards)[:12]}..., this one is {fingerprint[:12]}...)"
        )
    for file, facts in sorted(files.items()):
        differing = difference(folder / file, facts, quick=quick)
        if differing is None:
            continue
        if differing.kind == "missing":
            problems.append(f"{name}: {file} is missing")
        elif differing.kind == "size":
            found, listed = differing.bytes, differing.listed
            wrong = "truncated" if found < listed else "grown"
            problems.append(f"{name}: {file} has {found} bytes, {BANK_FILE} says {listed}: {wrong}")
        else:
            problems.append(
                f"{name}: {file} is not the one the bank was built with (its sha256 differs): swapped or damaged"
            )
    return problems
