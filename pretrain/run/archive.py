"""The members of a `torch.export` archive, judged without torch: what a program needs, and whatever may be a pickle.

`torch.export.load` unpickles example inputs, objects among the constants, and every tensor that its index declares as
pickled. A program of ours has none of them; it is JSON and raw bytes.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

from cardialign.data_shards.files import parse_json

RAW = re.compile(r"/data/(weights/weight|constants/tensor)_\d+$")
PLAIN = re.compile(r"/(models/\w+\.json|data/(weights|constants)/\w+\.json|archive_format|archive_version|byteorder)$")
NOTES = re.compile(r"/\.data/\w+$")
DECLARED, NOT_PICKLED = b"use_pickle", re.compile(rb'"use_pickle"\s*:\s*false\b')
LARGEST_INDEX = 2**28
"""Bytes of a member that is no tensor; the graph of a base encoder has about a hundredth of this."""


def pickled_parts(path: Path) -> list[str]:
    """Members of a .pt2 archive that are, or may be, a pickle; [] when there is none.

    Raises ValueError or OSError for what is no archive, or one whose members cannot be read.
    """
    found = []
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            found += sorted({name for name in names if names.count(name) > 1})  # readers differ in which one they take
            for member in archive.infolist():
                if (
                    RAW.search(member.filename) or not member.file_size
                ):  # torch writes no example inputs as an empty member
                    continue
                plain = PLAIN.search(member.filename) or NOTES.search(member.filename)
                if not plain or member.file_size > LARGEST_INDEX or not _is_plain(archive.read(member)):
                    found.append(member.filename)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"no zip archive that can be read: {error}") from None
    return found


def _is_plain(content: bytes) -> bool:
    """A short note, or JSON that declares no payload as pickled."""
    if content[:1] not in (b"{", b"["):
        return len(content) <= 64 and content.isascii() and b"\x80" not in content
    if b"\\u" not in content and content.count(DECLARED) == len(NOT_PICKLED.findall(content)):
        return True  # every such key is spelt out, and false: a large graph takes 0.1 s to parse
    try:
        return not _declares_a_pickle(parse_json(content))
    except (ValueError, RecursionError):
        return False


def _declares_a_pickle(values: Any) -> bool:
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get(DECLARED.decode()):
                return True
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return False
