"""Sizes and digests of a text bank's files: written into its `bank.json` when the bank is committed, compared when a shard set is verified."""

from __future__ import annotations

import json
from pathlib import Path

from cardialign.data_shards.build.shard_writer import file_sha256

BANK_FILE = "bank.json"


def add_digests(folder: Path) -> None:
    """Complete the `bank.json` of a bank that is about to be committed: name -> bytes and sha256 of every other file."""
    description = json.loads((folder / BANK_FILE).read_text(encoding="utf-8"))
    files = sorted(file for file in folder.iterdir() if file.name != BANK_FILE)
    description["files"] = {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files}
    (folder / BANK_FILE).write_text(json.dumps(description, indent=1, sort_keys=True), encoding="utf-8")


def bank_problems(folder: Path, fingerprint: str, *, quick: bool = False) -> list[str]:
    """What is wrong with a committed bank of the shard set with this fingerprint, in sentences. quick: presence and sizes only. Files that `bank.json` does
    not list are not looked at."""
    name = f"text bank {folder.name}"
    try:
        description = json.loads((folder / BANK_FILE).read_text(encoding="utf-8"))
        files = {file: (int(facts["bytes"]), str(facts["sha256"])) for file, facts in description["files"].items()}
        shards = description["shards"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{name}: {BANK_FILE} cannot be read or lists no digests ({error}): build the bank again"]
    problems = []
    if shards != fingerprint:
        problems.append(
            f"{name} belongs to another shard set ({str(shards)[:12]}..., this one is {fingerprint[:12]}...)"
        )
    for file, (size, sha256) in sorted(files.items()):
        path = folder / file
        if not path.is_file():
            problems.append(f"{name}: {file} is missing")
        elif (found := path.stat().st_size) != size:
            problems.append(
                f"{name}: {file} has {found} bytes, {BANK_FILE} says {size}: {'truncated' if found < size else 'grown'}"
            )
        elif not quick and file_sha256(path) != sha256:
            problems.append(
                f"{name}: {file} is not the one the bank was built with (its sha256 differs): swapped or damaged"
            )
    return problems
