"""Any folder of WFDB records (https://wfdb.io), at any depth, with an optional table of the user's own."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cardialign.data_shards.reading.wfdb.files import header_bytes
from cardialign.data_shards.reading.wfdb.header import header_lines, header_text, parse_header
from cardialign.data_shards.reading.wfdb.reader import read_wfdb
from cardialign.data_shards.record import EcgRecord
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.shared.demographics import header_comments
from cardialign.data_shards.sources.shared.mapped_folder import MappedFolder
from cardialign.data_shards.sources.shared.matches import EXAMPLES
from cardialign.data_shards.sources.shared.record import assemble

log = logging.getLogger(__name__)

_SUFFIXES = (".hea", ".dat", ".mat")
_NAME_OF_SEGMENT = re.compile(r"(.+)_(?:[0-9]{4}|layout)\.hea")


class WfdbFolder(MappedFolder):
    """Source "wfdb".

    Age and sex come from the header comments unless the table has them. Segments of a multi-segment record are read
    with it and are no records of their own.
    """

    name = "wfdb"
    prefix = "wfdb"
    layout = "WFDB records (.hea files), at any depth"

    def _listing(self) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
        if self._table is None:
            tables = [each.name for each in sorted(self.root.glob("*.csv")) if each.resolve() not in self._given_tables]
            if tables:
                log.warning(
                    "table source=%s none is named, and the folder holds %s: --table says which is meant",
                    self.name,
                    ", ".join(map(repr, tables[:EXAMPLES])),
                )
        return super()._listing()

    def _files(self) -> Iterator[str]:
        return (header.removesuffix(".hea") for header in self._find((".hea",), self._segments_in))

    def _segments_in(self, folder: str, headers: Iterable[str]) -> set[str]:
        """A record's segments lie beside it. Where its header is broken they are no records either: what it still
        lists, and what is named as segments are (`name_0001`, `name_layout`)."""
        found: set[str] = set()
        named: dict[str, list[str]] = {}
        for header in headers:
            found.update(f"{name}.hea" for name in _segments(self.root / folder / header))
            if by_name := _NAME_OF_SEGMENT.fullmatch(header):
                named.setdefault(by_name[1], []).append(header)
        for record, parts in named.items():
            if _is_broken(self.root / folder / f"{record}.hea"):
                found.update(parts)
        return found

    def _names_of(self, path: str) -> list[str]:
        name = path.rpartition("/")[2]
        return [name, *(name + suffix for suffix in _SUFFIXES), path, *(path + suffix for suffix in _SUFFIXES)]

    def _tidy(self, path: str) -> str:
        return next((path.removesuffix(suffix) for suffix in _SUFFIXES if path.endswith(suffix)), path)

    def _from_file(self, path: str) -> dict[str, Any]:
        return self._person(header_comments(self.root / f"{path}.hea"))

    def _read(self, entry: Entry, fields: dict[str, Any]) -> EcgRecord:
        path = self.root / entry.path
        signal = read_wfdb(path)
        signal = replace(signal, lead_names=self._called(signal.lead_names))
        return assemble(signal, str(path), entry.key, source=self.name, **fields)


def _segments(header: Path) -> list[str]:
    """Names of the segments that a multi-segment header (record line `name/3 12 500 ...`) lists, [] for any other.

    One that cannot be parsed (its record will be rejected with the reason) still lists some: the first word of a line.
    """
    try:
        text = header_text(header_bytes(header))
    except OSError:  # rejected, too
        return []
    lines = [line for line in header_lines(text) if line and not line.startswith("#")]
    if not lines or "/" not in lines[0].split(" ")[0]:
        return []
    try:
        listed = [name for name, _ in parse_header(text, header.stem).segments]
    except ValueError:
        listed = [line.split()[0] for line in lines[1:] if len(line.split()) <= 2]
    return [name for name in listed if name != header.stem]  # not its own


def _is_broken(header: Path) -> bool:
    """Whether the header is there and cannot be parsed."""
    try:
        parse_header(header_text(header_bytes(header)), header.stem)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return False
