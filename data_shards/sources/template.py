"""A template: copy this file, rename the class, change what is marked with (n), and add one line to the table in
`sources/__init__.py`.

It works as it stands, for a folder with records.csv (record, patient, age, sex, report) and one <record>.npy per
record: float (12, T) in mV at 500 Hz. Its options, a folder that is not there, doubled names, patient hashes, folds and
outside labels are taken care of by `RecordFolder`; leads, gains and quality by `assemble` (arrays) or `read_ecg` (WFDB
files), both in `data_shards/sources/shared/record.py`.

A reader never repairs and never guesses: a record that cannot be used raises RecordRejected(reason, detail) in `_read`,
and the build counts it; what makes the whole set unusable raises DataError in `_listing`, with a remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cardialign.data_shards.reading.arrays import read_array
from cardialign.data_shards.reading.tables import check_layout, file_facts, rows_of
from cardialign.data_shards.reading.voltages import signal_from_millivolts
from cardialign.data_shards.record import STANDARD_LEADS, EcgRecord
from cardialign.data_shards.report_text import clean_statements
from cardialign.data_shards.sources.base import Entry
from cardialign.data_shards.sources.shared.demographics import age_in_years, sex_in_words
from cardialign.data_shards.sources.shared.folder import RecordFolder
from cardialign.data_shards.sources.shared.record import assemble

_TABLE = "records.csv"


class Template(RecordFolder):
    """Source "template" (1: what the set is, where it is published, its label sets, where its folds come from)."""

    name = "template"  # (2) the word on the command line
    prefix = "template"  # (3) first part of every key
    label_sets: tuple[str, ...] = ()  # (4) the sets that `labels` below may hold
    layout = "records.csv and one .npy file per record"  # (5) what the folder should hold, for error messages

    def _listing(self) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
        """(6) One (path below the root, name or None for the file's own, meta) per record, in an order that never
        changes.

        The build walks this once and keeps nothing: yield, and read a large table a stretch of rows at a time, as here.
        meta holds text, numbers, None, and tuples, lists and dicts of them.
        """
        check_layout(self.root, self.name, (_TABLE,), self.layout)
        path = self.root / _TABLE
        rows = 0
        for row in rows_of(path, ("record", "patient", "age", "sex", "report")):
            meta = {
                "patient": row["patient"],
                "age_years": age_in_years(row["age"]),
                "sex": sex_in_words(row["sex"]),
                "statements": clean_statements(row["report"].split("|")),
            }
            yield f"{row['record']}.npy", row["record"], meta
            rows += 1
        self._facts["records"] = file_facts(path, rows)  # provenance for the manifest

    def _read(self, entry: Entry, fields: dict[str, Any]) -> EcgRecord:
        """(7) One signal; `fields` holds what `meta` said, patient hash and fold included."""
        path = self.root / entry.path
        signal = signal_from_millivolts(read_array(path).values, STANDARD_LEADS, 500.0, str(path))
        return assemble(signal, str(path), entry.key, source=self.name, **fields)
