"""Other reports for the records of a shard set, beside it and bound to it: completed, or enriched by measurements.

FOLDER/
    reports.parquet   the distinct reports, as a shard set has them: report int32 (= row), key, statements, text, count
    report.npy        int32 (records,): the report of every record of the set, -1 none
    text_bank/        text banks of these reports
    overlay.json      written last: the fingerprint of the set, what was done to its reports, size and sha256 of the
                      files above
What a record shows, who is selected and in which order are those of the set: an overlay changes what is said of a
record, never whether something is. `build.overlay` writes one, `ShardSet.open(..., reports=FOLDER)` reads one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cardialign.data_shards.array_files import load_array
from cardialign.data_shards.errors import DataError, StorageError, UsageError
from cardialign.data_shards.files import (
    UNREADABLE_ARRAY,
    FileFacts,
    difference,
    is_count,
    is_sha256,
    parse_json,
    read_bytes,
    sha256_once,
    shortened,
)
from cardialign.data_shards.locations import url_of
from cardialign.data_shards.shard_set.layout import BANKS, REPORTS, read_parquet

OVERLAY, ROW_REPORTS = "overlay.json", "report.npy"
OVERLAY_VERSION = 1
_REMEDY = "copy the folder there again, or make the reports again with the command that made them"
_MOST = (1 << 31) - 1


def overlay_digest(shards: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    """sha256 over the set's fingerprint and the content of the files: banks, and by them runs, are bound to it."""
    return hashlib.sha256(
        json.dumps([shards, sorted((name, each["sha256"]) for name, each in files.items())]).encode()
    ).hexdigest()


class ReportsOverlay:
    """The reports in `folder`, checked to be as they were written and those of the set with this fingerprint and so
    many records.

    Attributes: folder, digest, reports (how many distinct ones), made (what was done to the set's own reports, first
    step first). Raises DataError that says what is wrong, UsageError for a URL.
    """

    def __init__(self, folder: Path | str, fingerprint: str, records: int) -> None:
        if url_of(folder) is not None:
            raise UsageError(f"{folder} is a URL; such reports are read from a folder", "fetch the folder first")
        self.folder = Path(folder)
        values = _read(self.folder / OVERLAY)
        if values["shards"] != fingerprint:
            raise DataError(
                f"the reports in {self.folder} were made for another shard set ({values['shards'][:12]}..., this one "
                f"is {fingerprint[:12]}...)",
                "name the set that they were made for, or make them again for this one",
            )
        for name in (REPORTS, ROW_REPORTS):
            self._check(name, values["files"][name])
        self.digest = overlay_digest(fingerprint, values["files"])
        self.reports: int = values["reports"]
        self.made: list[dict[str, Any]] = values["made"]
        self._records = records

    @property
    def banks(self) -> Path:
        """The folder of text banks of these reports."""
        return self.folder / BANKS

    def _check(self, name: str, listed: Mapping[str, Any]) -> None:
        file = self.folder / name
        try:
            differing = difference(file, FileFacts(listed["sha256"], listed["bytes"]), digest=sha256_once)
        except OSError as error:
            raise StorageError(f"{file} cannot be read: {error}", "check the file and its storage") from error
        if differing is not None:
            raise DataError(f"{file} is not as it was written ({differing.kind})", _REMEDY)

    @cached_property
    def report(self) -> np.ndarray:
        """int32 (records,), memory-mapped. Raises DataError for one that points out of the table."""
        file = self.folder / ROW_REPORTS
        try:
            numbers: np.ndarray = load_array(file, mapped=True)
        except UNREADABLE_ARRAY as error:
            raise DataError(f"{file} cannot be read: {error}", _REMEDY) from error
        if numbers.dtype != np.int32 or numbers.shape != (self._records,):
            raise DataError(
                f"{file} holds {numbers.dtype} {numbers.shape} for a set of {self._records} records", _REMEDY
            )
        if numbers.size and not (int(numbers.min()) >= -1 and int(numbers.max()) < self.reports):
            raise DataError(f"{file} names reports beyond the {self.reports} that are there", _REMEDY)
        return numbers

    def columns(self, names: list[str] | None = None) -> pa.Table:
        """Some columns of the table of distinct reports, None = all."""
        return read_parquet(self.folder / REPORTS, columns=names)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = parse_json(read_bytes(file))
    except FileNotFoundError:
        raise DataError(
            f"{file.parent} holds no reports beside a set (no {OVERLAY})",
            "name the folder that `cardialign text complete` or `text enrich` made",
        ) from None
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error}", "check the file and its storage") from error
    except ValueError as error:
        raise DataError(f"{file} is damaged: {error}", _REMEDY) from error
    mistake = _mistake(values)
    if mistake:
        raise DataError(f"{file} is damaged, or of another release: {mistake}", _REMEDY)
    return values


def _mistake(values: Any) -> str:
    if not isinstance(values, dict):
        return f"it holds {shortened(values)}"
    if values.get("version") != OVERLAY_VERSION:
        return f"version {shortened(values.get('version'))}; this software reads version {OVERLAY_VERSION}"
    if not is_sha256(values.get("shards")) or not is_count(values.get("reports"), _MOST):
        return "it does not say for which set it is, or how many reports it has"
    made, files = values.get("made"), values.get("files")
    if not isinstance(made, list) or not all(isinstance(each, dict) for each in made):
        return "it does not say what was done to the reports"
    for name in (REPORTS, ROW_REPORTS):
        facts = files.get(name) if isinstance(files, dict) else None
        if not isinstance(facts, dict) or not is_sha256(facts.get("sha256")) or not is_count(facts.get("bytes")):
            return f"it lists no size or no sha256 of {name}"
    return ""
