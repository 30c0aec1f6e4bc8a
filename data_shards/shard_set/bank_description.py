"""What `bank.json` says of the files of a text bank: judged when it is read, from a folder or a URL, before any name or
digest in it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cardialign.data_shards.errors import DataError
from cardialign.data_shards.files import (
    FileFacts,
    is_count,
    is_plain_name,
    is_sha256,
    parse_json,
    shortened,
)

BANK_VERSION = 2
REMEDY = (
    "delete the folder of the bank and run `cardialign text-bank build` for these shards and this text encoder (from "
    "the cache of a URL delete it only: it is fetched again)"
)
_WORDS = ("encoder_fingerprint", "style")
_NUMBERS = ("version", "cleaning_version", "max_tokens", "dim", "reports")


class OtherBankVersionError(DataError):
    """A text bank of another format: whole perhaps, but not for this software to read."""


def judge_bank(text: bytes, where: str) -> dict[str, Any]:
    """The description in `text`. Raises DataError that names `where` and what is wrong, OtherBankVersionError for a
    bank of another format."""
    try:
        description = parse_json(text)
        if not isinstance(description, dict):
            raise ValueError(f"it holds {shortened(description)}, not an object")
        version = description.get("version")
        if is_count(version) and version != BANK_VERSION:
            raise OtherBankVersionError(
                f"{where} is of version {version}; this software reads version {BANK_VERSION}", REMEDY
            )
        missing = sorted({"shards", "files", *_WORDS, *_NUMBERS} - description.keys())
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        _check(description)
    except OtherBankVersionError:
        raise
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}", REMEDY) from error
    return description


def _check(description: dict[str, Any]) -> None:
    wrong = [name for name in _WORDS if not isinstance(description[name], str)]
    wrong += [name for name in _NUMBERS if not is_count(description[name], (1 << 31) - 1)]
    if not is_sha256(description["shards"]):
        wrong.append("shards")
    if "overlay" in description and not is_sha256(description["overlay"]):
        wrong.append("overlay")
    if wrong:
        raise ValueError("; ".join(f"{name!r} is {shortened(description[name])}" for name in wrong))
    for part in ("files", "derived"):
        if part in description:
            _check_files(part, description[part])


def _check_files(part: str, files: Any) -> None:
    if not isinstance(files, dict):
        raise ValueError(f"{part!r} is {shortened(files)}, not an object")
    for name, facts in files.items():
        if not is_plain_name(name):
            raise ValueError(f"{part!r} lists {shortened(name)}, which is no name of a file in its folder")
        if not (isinstance(facts, dict) and is_sha256(facts.get("sha256")) and is_count(facts.get("bytes"))):
            raise ValueError(f"{part!r} has no size or no sha256 of {name}")


def listed_files(description: Mapping[str, Any]) -> dict[str, FileFacts]:
    """Name -> facts of every file that a judged description lists: those of the bank, and those derived from it."""
    files = {**description["files"], **description.get("derived", {})}
    return {name: FileFacts(facts["sha256"], facts["bytes"]) for name, facts in files.items()}


def bank_digest(description: Mapping[str, Any]) -> str:
    """sha256 over the content of a bank, as a judged description lists it: a run is bound to the one it trained on."""
    content: list[Any] = sorted((name, facts["sha256"]) for name, facts in description["files"].items())
    if "overlay" in description:  # who has which of the reports stands outside of the bank
        content = [description["overlay"], content]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
